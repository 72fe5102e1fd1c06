import { type Chart, lineChart } from '../chart.js'
import type { Machine } from '../machine.js'
import { count, figure, table } from '../markdown.js'
import { LIMIT } from '../traffic.js'
import { type Part, type ScaleOutResult, SLICE_SEC, USERS } from './bench.js'

/** The page scaleout.md. */
export function scaleOutPage(machine: Machine, result: ScaleOutResult): string {
  const { perSecond, seconds, answers, failed, wrong, passedOn, parts, byTurns } = result
  const percent = (share: number) => `${figure(100 * share)} %`
  const row = ({ name, answers, p50, p99, memory, redis, computed }: Part) => [
    name,
    count(answers),
    figure(p50),
    figure(p99),
    ...[memory, redis, computed].map(percent),
  ]
  return [
    '# Three replicas, one killed, all restarted',
    '',
    'Written by `npm run bench:scaleout`; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, commit ${machine.commit}, ${machine.date}`,
    `* Model: 4 layers, width 128, histories of 790 to 810 tokens, random weights; ${USERS} users, ${figure(perSecond)} requests per second, Poisson, latency from when a request was due`,
    '',
    `nginx with [deploy/nginx/nginx.conf](../../deploy/nginx/nginx.conf) chooses the replica by a consistent hash of the user; the replicas share a Redis Cluster of three masters. Replicas, Redis, nginx and the load share the ${machine.cores} cores: a replica that starts takes them from the others, and that is most of what the latencies show. An answer is wrong when a logit differs by more than ${LIMIT} from that of a ranker without any cache.`,
    '',
    `**${count(answers)} answers in ${figure(seconds)} s, ${failed} not 200, ${wrong} wrong** (largest difference ${result.largestDifference.toExponential(1)}). ${passedOn} requests met a replica that was gone or loading, and nginx sent them to the next one.`,
    '',
    ...table(
      [
        'from this moment on',
        'answers',
        'p50 ms',
        'p99 ms',
        'K/V in memory',
        'in Redis',
        'computed',
      ],
      [...parts, byTurns].map(row),
    ),
    '',
    'Replica 2 is killed by SIGKILL in the middle of its requests. In the rolling restart each gets SIGTERM, drains, ends with code 0 and is started again; the next one follows when it is ready. The last row is the same load without a load balancer, each request at the next replica: what affinity is worth.',
    '',
    '![latency over time](scaleout.svg)',
    '',
    '![where the K/V was](scaleout-kv.svg)',
    '',
  ].join('\n')
}

function chart(
  machine: Machine,
  { moments }: ScaleOutResult,
  rest: Pick<Chart, 'title' | 'y' | 'series'>,
): string {
  return lineChart({
    subtitle: `${machine.cpu}, ${machine.cores} cores, commit ${machine.commit}`,
    x: { label: 'seconds' },
    moments: moments.map(({ what, atMs }) => ({ name: what, x: atMs / 1000 })),
    ...rest,
  })
}

const middle = (i: number) => (i + 0.5) * SLICE_SEC

export function latencyChart(machine: Machine, result: ScaleOutResult): string {
  const { slices } = result
  return chart(machine, result, {
    title: 'Latency while replicas die and restart',
    y: { label: 'ms' },
    series: [
      { name: `p50 of ${SLICE_SEC} s`, points: slices.map(({ p50 }, i) => [middle(i), p50]) },
      {
        name: `p99 of ${SLICE_SEC} s`,
        points: slices.map(({ p99 }, i) => [middle(i), p99]),
        dashed: true,
      },
    ],
  })
}

export function sharesChart(machine: Machine, result: ScaleOutResult): string {
  const points = (of: 'memory' | 'redis' | 'computed') =>
    result.slices.map((one, i) => [middle(i), 100 * one[of]] as const)
  return chart(machine, result, {
    title: 'Where the K/V was',
    y: { label: `% of the answers of ${SLICE_SEC} s` },
    series: [
      { name: "the replica's memory", points: points('memory') },
      { name: 'Redis', points: points('redis') },
      { name: 'nowhere: computed', points: points('computed'), dashed: true },
    ],
  })
}
