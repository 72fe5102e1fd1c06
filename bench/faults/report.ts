import { lineChart } from '../chart.js'
import type { Machine } from '../machine.js'
import { count, figure, table } from '../markdown.js'
import { LIMIT } from '../traffic.js'
import { type FaultsResult, PATIENCE_MS, type Run } from './bench.js'

/** p99 without Redis may grow by this, and by the least that a lookup in vain may take. */
const FACTOR = 1.2

/** What p99 may be at most, from the server without Redis at the same time. */
function targetMs({ p99 }: Run): number {
  return FACTOR * p99 + PATIENCE_MS
}

/** The page faults.md. */
export function faultsPage(machine: Machine, result: FaultsResult): string {
  const { perSecond, rows, all, replicas, restart } = result
  const counts = ({ answers, failed, wrong }: Run) => [count(answers), `${failed}`, `${wrong}`]
  return [
    '# Redis fails, Peregrine does not',
    '',
    'Written by `npm run bench:faults`; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, commit ${machine.commit}, ${machine.date}`,
    `* Model: 4 layers, width 128, histories of 760 to 860 tokens, fp16 in Redis, random weights; ${figure(perSecond)} requests per second, Poisson, latency from when a request was due`,
    '',
    `Each fault lasts 5 s in the middle of a load of 7 s, three times. Requests go by turns to the server with Redis and to one without, so that what else the machine does falls on both; a server that computes more also takes cores from the other. Tier 1 holds nothing: every request needs Redis or computes its history. An answer is wrong when a logit differs by more than ${LIMIT} from that of a ranker without any cache. The target for p99 is ${FACTOR} x p99 without Redis + ${PATIENCE_MS} ms; a lookup's budget is these and up to what computing would cost, so the target is the strictest reading of it.`,
    '',
    `Of so few answers a p99 is nearly the slowest one; of all faults together it is ${figure(all.fault.p99)} ms of ${count(all.fault.answers)} answers, without Redis ${figure(all.plain.p99)} ms of ${count(all.plain.answers)} (target ${figure(targetMs(all.plain))}${all.fault.p99 <= targetMs(all.plain) ? ', met' : ', **missed**'}); p50 ${figure(all.fault.p50)} and ${figure(all.plain.p50)} ms.`,
    '',
    ...table(
      [
        'fault',
        'answers',
        'not 200',
        'wrong',
        'from Redis',
        'p50 ms',
        'p99 ms',
        'without Redis p50',
        'p99',
        'target p99',
        'K/V found again after',
      ],
      rows.map(({ name, fault, plain, backMs }) => [
        name,
        ...counts(fault),
        count(fault.fromRedis),
        figure(fault.p50),
        `${figure(fault.p99)}${fault.p99 <= targetMs(plain) ? '' : ' **over**'}`,
        figure(plain.p50),
        figure(plain.p99),
        figure(targetMs(plain)),
        backMs === null ? '**not in 30 s**' : `${figure(Math.max(0, backMs) / 1000)} s`,
      ]),
    ),
    '',
    `Two replicas on one Redis, the same users on both by turns for ${replicas.seconds.length} s: ${count(replicas.answers)} answers, ${replicas.failed} not 200, ${replicas.wrong} wrong, largest difference ${replicas.largestDifference.toExponential(1)}.`,
    '',
    `A new process, first requests of known users: ${restart.fromRedis} of ${restart.answers} found K/V in Redis, ${restart.whole} of them computed no token, ${restart.wrong} wrong.`,
    '',
    '![latency through faults](faults.svg)',
    '',
  ].join('\n')
}

/** p90 by second, through the faults that could stall a request. */
export function faultsChart(machine: Machine, { rows }: FaultsResult): string {
  const points = ({ seconds }: Run) => seconds.map((ms, second) => [second + 0.5, ms] as const)
  const stalls = rows.filter(({ name }) => /none|killed|paused|slow/.test(name))
  const [first] = rows
  return lineChart({
    title: 'Latency while Redis fails (from second 1 to 6)',
    subtitle: `${machine.cpu}, ${machine.cores} cores, commit ${machine.commit}`,
    x: { label: 'seconds' },
    y: { label: 'p90 of each second, ms' },
    series: [
      ...(first === undefined
        ? []
        : [{ name: 'without Redis', points: points(first.plain), dashed: true }]),
      ...stalls.map(({ name, fault }) => ({ name, points: points(fault) })),
    ],
  })
}
