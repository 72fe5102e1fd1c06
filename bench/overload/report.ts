import { lineChart } from '../chart.js'
import type { Machine } from '../machine.js'
import { count, figure, table, verdict } from '../markdown.js'
import { CALM, OVERLOAD, type OverloadResult } from './bench.js'

const TARGETS = { share: 0.9, refusalMs: 5, recoverySec: 2, growth: 1.05 }

/** The page overload.md. */
export function overloadPage(machine: Machine, result: OverloadResult, name: string): string {
  const { accepted, refusal, rssMiB, before, after, cpus, deadlineMs } = result
  const isApart = cpus.load !== undefined
  const growth = rssMiB.late / rssMiB.early
  return [
    '# Overload',
    '',
    'Written by `npm run bench:overload`, see bench/run-overload.ts; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, onnxruntime ${machine.onnxruntime}, commit ${machine.commit}, ${machine.date}`,
    `* ${result.what}; ${result.generators === 1 ? 'the load generator is a process of its own' : `the load comes from ${result.generators} processes of their own`}, ${isApart ? `on CPUs ${cpus.load}, the server is on ${cpus.server ?? 'all'}` : 'on the same cores'}${result.flags.length === 0 ? '' : `; served with \`${result.flags.join(' ')}\``}`,
    '',
    `Capacity is what ${result.connections} connections reach in time that each wait for their answer, the best of several numbers of them of whom hardly one was refused: ${result.closed.map(figure).join(' requests per second before and ')} after, ${figure(result.capacityPerSecond)} on average. Then Poisson arrivals, whoever was answered: ${CALM} of the first of them, ${OVERLOAD} times as many as it for ${result.seconds} s, ${CALM} again. Every request says \`x-deadline-ms: ${deadlineMs}\`. Latency counts from when a request was due, that of a refusal from when it was sent. The load itself was sent late by ${figure(result.lag.p50)} ms (p50), ${figure(result.lag.p99)} (p99), ${figure(result.lag.most)} at most; the server's event loop was late by ${figure(result.eventLoopP99Ms)} ms${isApart ? '' : ': both share the cores with the runs'}. Refused were, by reason, ${Object.entries(
      result.refusals,
    )
      .map(([reason, n]) => `${reason} ${count(n)}`)
      .join(', ')}.`,
    '',
    ...table(
      ['what', 'figure', 'target', ''],
      [
        verdict(
          'answers in time, of the capacity',
          `${figure(100 * result.share)} %`,
          `${100 * TARGETS.share} %`,
          result.share >= TARGETS.share,
        ),
        verdict(
          'p99 of what was let in',
          `${figure(accepted.p99)} ms`,
          `${deadlineMs} ms`,
          accepted.p99 <= deadlineMs,
        ),
        verdict(
          'p99 of a 429',
          `${figure(refusal.p99)} ms (p50 ${figure(refusal.p50)})`,
          `${TARGETS.refusalMs} ms`,
          refusal.p99 <= TARGETS.refusalMs,
        ),
        verdict(
          'resident memory, last sixth of the overload to its second',
          `${figure(growth)} x`,
          `${TARGETS.growth} x`,
          growth <= TARGETS.growth,
        ),
        verdict(
          'until all is well again',
          `${figure(result.recoverySec)} s`,
          `${TARGETS.recoverySec} s`,
          result.recoverySec <= TARGETS.recoverySec,
        ),
      ],
    ),
    '',
    ...table(
      ['offered', 'in time', 'late', '429', '504', 'failed', 'sockets'],
      [
        [
          `${figure(result.offeredPerSecond)}/s`,
          ...[result.good, result.late, result.refused, result.expired].map(count),
          ...[result.failed, result.sockets].map(count),
        ],
      ],
    ),
    '',
    ...table(
      ['', 'before', 'overload', 'after'],
      [
        ['p50 of 200, ms', figure(before.p50), figure(accepted.p50), figure(after.p50)],
        ['p99 of 200, ms', figure(before.p99), figure(accepted.p99), figure(after.p99)],
        [
          'resident memory, MiB',
          count(rssMiB.before),
          `${count(rssMiB.early)} to ${count(rssMiB.late)}`,
          count(rssMiB.after),
        ],
      ],
    ),
    '',
    `![answers and refusals by second](${name}.svg)`,
    '',
  ].join('\n')
}

export function overloadChart(machine: Machine, { timeline, ...result }: OverloadResult): string {
  const points = (value: (second: (typeof timeline)[number]) => number) =>
    timeline.map((second, i) => [i + 0.5, value(second)] as const)
  return lineChart({
    title: `${OVERLOAD} times the capacity for ${result.seconds} s`,
    subtitle: `${machine.cpu}, ${machine.cores} cores, commit ${machine.commit}`,
    x: { label: 'seconds' },
    y: { label: 'requests per second; MiB' },
    series: [
      { name: 'answered in time', points: points(({ good }) => good) },
      { name: 'refused with 429', points: points(({ refused }) => refused) },
      { name: 'resident memory, MiB', points: points(({ rssMiB }) => rssMiB) },
      { name: 'capacity', points: points(() => result.capacityPerSecond), dashed: true },
    ],
  })
}
