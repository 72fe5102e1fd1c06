import { lineChart } from '../chart.js'
import type { Machine } from '../machine.js'
import { count, figure, table, verdict } from '../markdown.js'
import { median } from '../stats.js'
import { type Handles, LOAD_SHARE, SAMPLE_SEC, type SoakResult, type SoakSample } from './bench.js'

/** Of resident memory, per hour: what is less cannot be told from none in half an hour. */
const MOST_GROWTH = 0.02
/** Descriptors and threads more after the load than before it. */
const MOST_MORE = 2

const HELD: readonly (readonly [keyof SoakSample, string])[] = [
  ['rssMiB', 'resident memory, MiB'],
  ['heapMiB', 'heap in use, MiB'],
  ['externalMiB', 'external memory, MiB'],
  ['descriptors', 'file descriptors'],
  ['sockets', 'of them sockets'],
  ['threads', 'threads'],
  ['activeResources', 'active resources of Node'],
  ['kvEntries', 'K/V entries'],
  ['kvMiB', 'K/V, MiB'],
  ['storedUsers', 'stored users'],
  ['p50', 'p50, ms'],
  ['p99', 'p99, ms'],
]

/** The page soak.md. */
export function soakPage(machine: Machine, result: SoakResult): string {
  const { samples, slope: memory, answers, idle } = result
  const [first, second] = halves(samples)
  const of = (part: readonly SoakSample[], key: keyof SoakSample) =>
    median(part.map((each) => each[key]))
  const more = (key: keyof Handles) => idle.after[key] - idle.before[key]
  const all = Object.values(answers).flatMap((by) => Object.entries(by))
  const sum = (wanted: (status: number) => boolean) =>
    all.reduce((n, [status, times]) => n + (wanted(Number(status)) ? times : 0), 0)
  const failed = sum((status) => (status < 200 || status >= 300) && status !== 429)
  const share = memory.slope / of(second, 'rssMiB')
  const isFlat = memory.slope - memory.plusMinus <= 0 || share <= MOST_GROWTH
  const gcShare =
    ((samples.at(-1)?.gcSeconds ?? 0) - (samples[0]?.gcSeconds ?? 0)) /
    Math.max(1, (samples.length - 1) * SAMPLE_SEC)
  return [
    '# Soak',
    '',
    'Written by `npm run bench:soak`; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, onnxruntime ${machine.onnxruntime}, commit ${machine.commit}, ${machine.date}`,
    `* Demo model, Poisson arrivals at ${figure(result.perSecond)}/s, ${100 * LOAD_SHARE} % of ${figure(result.capacityPerSecond)}/s in a closed loop, for ${result.minutes} minutes; the load generator is on the same cores`,
    '',
    `Users come and go, some with a stored history that is ranked by and forgotten later; beside rankings there are batches and prefetches, and every ${result.reloadSec} s a new version takes the place of the model (${result.reloads} times). The K/V cache holds 64 MiB and turns over all the time.`,
    '',
    ...table(
      ['what', 'figure', 'target', ''],
      [
        verdict(
          'resident memory, second half',
          `${figure(memory.slope)} ± ${figure(memory.plusMinus)} MiB/h (95 %)`,
          `0 in the interval, or at most ${100 * MOST_GROWTH} % per hour`,
          isFlat,
        ),
        ...(['descriptors', 'threads'] as const).map((key) =>
          verdict(
            `${key}, idle after the load over idle before it`,
            `${idle.after[key]} - ${idle.before[key]} = ${more(key)}`,
            `at most +${MOST_MORE}`,
            more(key) <= MOST_MORE,
          ),
        ),
        verdict('failed requests', count(failed), '0', failed === 0),
      ],
    ),
    '',
    ...table(
      ['median of', 'first half', 'second half', 'most'],
      HELD.map(([key, name]) => [
        name,
        figure(of(first, key)),
        figure(of(second, key)),
        figure(Math.max(...samples.map((each) => each[key]))),
      ]),
    ),
    '',
    ...table(
      ['request', 'answers by status'],
      Object.entries(answers).map(([kind, by]) => [
        kind,
        Object.entries(by)
          .map(([status, times]) => `${status}: ${count(times)}`)
          .join(', '),
      ]),
    ),
    '',
    `Garbage collection took ${figure(100 * gcShare)} % of the time. Of ${count(sum(() => true))} requests ${count(sum((status) => status === 429))} were refused with 429, which counts for no failure: at this load only a burst, or somebody else on the machine, fills the queue.`,
    '',
    'While requests wait there are as many sockets as clients that wait, so that descriptors are compared where nobody is connected.',
    '',
    '![memory, descriptors and latency over time](soak.svg)',
    '',
  ].join('\n')
}

export function soakChart(machine: Machine, { samples, minutes, reloadSec }: SoakResult): string {
  const points = (key: keyof SoakSample) =>
    samples.map((sample) => [sample.second / 60, sample[key]] as const)
  const reloads = samples
    .filter(({ second }) => second % reloadSec === 0 && second < 60 * minutes)
    .map(({ second }) => ({ name: 'new version', x: second / 60 }))
  return lineChart({
    title: `${minutes} minutes at ${100 * LOAD_SHARE} % of the capacity`,
    subtitle: `${machine.cpu}, ${machine.cores} cores, commit ${machine.commit}`,
    x: { label: 'minutes' },
    y: { label: 'MiB; number; ms' },
    series: [
      { name: 'resident memory, MiB', points: points('rssMiB') },
      { name: 'heap in use, MiB', points: points('heapMiB') },
      { name: 'file descriptors', points: points('descriptors') },
      { name: 'threads', points: points('threads') },
      { name: 'p99, ms', points: points('p99') },
    ],
    moments: reloads,
  })
}

function halves(samples: readonly SoakSample[]) {
  const middle = Math.floor(samples.length / 2)
  return [samples.slice(0, middle), samples.slice(middle)] as const
}
