import { lineChart } from './chart.js'
import type { Machine } from './machine.js'
import { count, figure, table } from './markdown.js'
import { K, type Latency, type RetrievePoint } from './retrieve.js'

/** The page retrieve.md. */
export function retrievePage(machine: Machine, points: readonly RetrievePoint[]): string {
  const [first] = points
  const both = ({ p50, p99 }: Latency) => [figure(p50), figure(p99)]
  const sizes = [...new Set(points.flatMap(({ byChunk }) => byChunk.map((c) => c.chunkItems)))]
  return [
    '# Retrieval',
    '',
    'Written by `npm run bench:retrieve`; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}, commit ${machine.commit}, ${machine.date}`,
    `* A next-item model with random weights: 2 layers, width ${first?.width}, 200 events, all of whose K/V is there; the best ${K} of all items but those of the history; engine \`capi\`, one thread, one request at a time`,
    '',
    'Everything of one size is measured in turn in one process. `one product`: a matrix of all items’ normed rows, a copy of its own, times the user, and ONNX Runtime’s TopK over all scores; nothing left out. `JavaScript`: products and a heap over the same rows, on the event loop. Milliseconds:',
    '',
    ...table(
      [
        ...['items', 'runs', 'request p50', 'p99', 'search p50', 'p99'],
        ...['one product p50', 'p99', 'JavaScript p50', 'p99'],
      ],
      points.map(({ items, repeats, request, search, product, javascript }) => [
        ...[count(items), count(repeats)],
        ...[request, search, product, javascript].flatMap(both),
      ]),
    ),
    '',
    '![milliseconds by items](retrieve.svg)',
    '',
    '## By size of a chunk',
    '',
    `Search, p50 in milliseconds; where nobody says a chunk has ${count(first?.chunkItems ?? Number.NaN)} items (4 MiB of rows).`,
    '',
    ...table(
      ['items', ...sizes.map((size) => count(size))],
      points.map(({ items, byChunk }) => [
        count(items),
        ...sizes.map((size) =>
          figure(byChunk.find(({ chunkItems }) => chunkItems === size)?.search.p50),
        ),
      ]),
    ),
    '',
    '## Memory',
    '',
    'Peak of a process of its own, in MiB, without the mapped weight file.',
    '',
    ...table(
      ['items', 'in chunks', 'all at once'],
      points.map(({ items, chunkItems, memory }) => [
        count(items),
        figure(memory.find((each) => each.chunkItems === chunkItems)?.peakMiB),
        figure(memory.find((each) => each.chunkItems === items)?.peakMiB),
      ]),
    ),
    '',
  ].join('\n')
}

/** p50 by items, as SVG. */
export function retrieveChart(machine: Machine, points: readonly RetrievePoint[]): string {
  const line = (name: string, of: (point: RetrievePoint) => Latency, dashed = false) => ({
    name,
    dashed,
    points: points.map((point) => [point.items, of(point).p50] as const),
  })
  return lineChart({
    title: `The best ${K} of a list`,
    subtitle: `${machine.cpu}, one thread, commit ${machine.commit}`,
    x: { label: 'items', log: true },
    y: { label: 'p50, ms', log: true },
    series: [
      line('request', ({ request }) => request),
      line('search', ({ search }) => search),
      line('one product and TopK', ({ product }) => product, true),
      line('JavaScript', ({ javascript }) => javascript, true),
    ],
  })
}
