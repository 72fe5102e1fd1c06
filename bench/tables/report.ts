import { barChart } from '../chart.js'
import type { Machine } from '../machine.js'
import { count, figure, table } from '../markdown.js'
import type { TableCase, TablesResult } from './tables.js'

const nameOf = ({ items, table: type }: TableCase) => `${count(items)} ${type}`

/** The page tables.md. */
export function tablesPage(machine: Machine, result: TablesResult): string {
  const { exports, lookUps, served, ranked } = result
  const base = ranked[0]?.p50Ms ?? Number.NaN
  return [
    '# Large embedding tables',
    '',
    'Written by `npm run bench:tables`; do not edit. What it means: [docs/big-tables.md](../../docs/big-tables.md).',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, onnxruntime ${machine.onnxruntime}, commit ${machine.commit}, ${machine.date}`,
    '* 2 layers, width 64, 2 heads, float32 arithmetic; string ids of about 13 characters; requests of 50 events and 2,048 candidates from all over the table',
    '',
    '![Rank, look-up and memory by table](tables.svg)',
    '',
    '## Export',
    '',
    'From a seeded generator: its numbers, the quantisation, the index of the ids and every hash are in the seconds. The peak is all of the process’s resident memory.',
    '',
    ...table(
      ['items', 'seconds', 'peak MiB', 'weights MiB', 'ids MiB'],
      exports.map((each) => [
        ...[nameOf(each), figure(each.seconds), figure(each.peakMiB)],
        ...[figure(each.tableMiB), figure(each.idsMiB)],
      ]),
    ),
    '',
    '## Ids to rows',
    '',
    'The index of the bundle beside a `Map` of the same ids; `index`: the ids of a request together, `single`: one by one. Shared bytes are pages of the file, which processes have in common.',
    '',
    ...table(
      [
        ...['ids', 'by', 'open ms', '2,048 known p50 ms', 'p10 ms', '2,048 unknown p50 ms'],
        ...['bytes per id', 'of them the process’s own'],
      ],
      lookUps.map((each) => [
        ...[count(each.items), each.kind, figure(each.openMs), figure(each.p50Ms)],
        ...[figure(each.p10Ms), figure(each.unknownP50Ms)],
        ...[figure(each.bytesPerId), figure(each.ownBytesPerId)],
      ]),
    ),
    '',
    '## Memory of processes that serve it',
    '',
    'After 300 requests each. RSS counts a file’s pages in every process, PSS divides them by those that have them; anonymous memory is nobody else’s. "Table" is the mapping of `weights.bin` alone, "copied" what of it is not the file’s own pages.',
    '',
    ...table(
      [
        ...[
          'items',
          'engine',
          'start s',
          'RSS MiB',
          'anonymous MiB',
          'table RSS MiB',
          'copied MiB',
        ],
        ...['two: RSS each', 'two: PSS each', 'two: table PSS each'],
      ],
      served.map((each) => {
        const { one, two } = each
        const mean = (of: (process: (typeof two)[number]) => number) =>
          figure(two.reduce((sum, process) => sum + of(process), 0) / two.length)
        return [
          ...[nameOf(each), each.engine, figure(each.startMs / 1000), figure(one.rss)],
          ...[figure(one.anonymous), figure(one.table.rss), figure(one.table.copied)],
          ...[mean(({ rss }) => rss), mean(({ pss }) => pss), mean((own) => own.table.pss)],
        ]
      }),
    ),
    '',
    '## Rank',
    '',
    'Engine `capi`, one thread, the models in turns. The first requests of a process also map the pages that they touch.',
    '',
    ...table(
      ['items', 'first ten ms', 'p50 ms', 'p90 ms', `to ${ranked[0] ? nameOf(ranked[0]) : ''}`],
      ranked.map((each) => [
        ...[nameOf(each), figure(each.firstMs), figure(each.p50Ms)],
        ...[figure(each.p90Ms), `${(each.p50Ms / base).toFixed(2)}`],
      ]),
    ),
    '',
  ].join('\n')
}

/** Against the small table: rank and memory of a process without what it shares. */
export function tablesChart(machine: Machine, { ranked, served }: TablesResult): string {
  const capi = served.filter(({ engine }) => engine === 'capi')
  return barChart({
    title: 'Tables of 10⁴ to 10⁷ rows: rank ms, own memory MiB / 10, table’s share of PSS MiB / 10',
    subtitle: `${machine.cpu}, commit ${machine.commit}`,
    categories: ranked.map(nameOf),
    series: [
      { name: 'rank p50, 2,048 candidates, ms', values: ranked.map(({ p50Ms }) => p50Ms) },
      {
        name: 'anonymous memory, 10 MiB',
        values: capi.map(({ one }) => one.anonymous / 10),
      },
      {
        name: 'table, each of two processes, 10 MiB',
        values: capi.map(({ two }) => (two[0]?.table.pss ?? Number.NaN) / 10),
      },
    ],
  })
}
