import type { Machine } from './machine.js'
import { count, figure, table } from './markdown.js'
import type { ReloadResult } from './reload.js'
import { median, quantile } from './stats.js'

/** p99 during a reload may be so many times that of the calm before it. */
const MOST_P99 = 1.5
/** Share by which memory may have grown after the last reload. */
const MOST_MEMORY = 0.05

/** The page reload.md. */
export function reloadPage(machine: Machine, result: ReloadResult): string {
  const { capacityPerSecond, perSecond, failed, rampSec, calm, during, reloads } = result
  const ratios = reloads.map((each) => each.during.p99 / each.before.p99)
  const ratio = median(ratios)
  const quarters = [0.25, 0.75].map((share) => quantile(ratios, share).toFixed(2))
  const first = result.rssBeforeMiB
  const last = reloads.at(-1)?.rssMiB ?? Number.NaN
  const change = last / first - 1
  const met = (isMet: boolean) => (isMet ? 'met' : '**missed**')
  return [
    '# Reloads under load',
    '',
    'Written by `npm run bench:reload`; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, commit ${machine.commit}, ${machine.date}`,
    `* The demo model and its real requests over loopback, the client on the same cores; capacity in a closed loop ${figure(capacityPerSecond)}/s, load ${figure(perSecond)}/s (${Math.round((100 * perSecond) / capacityPerSecond)} %), Poisson, latency from when a request was due`,
    '',
    `${reloads.length} times a new version appears in the watched folder in the place of the one before: it is loaded and warmed, the users move to it over ${rampSec} s, the old one is drained and closed. Each user’s K/V is made anew on the new version. "During" is from the appearance of the folder until the old version is gone, "calm" all other time of the same run.`,
    '',
    ...table(
      ['', 'answers', 'p50 ms', 'p95 ms', 'p99 ms'],
      (
        [
          ['calm', calm],
          ['during reloads', during],
          ['until a version serves', result.loading],
          ['while users move to it', result.moving],
        ] as const
      ).map(([name, { count: answers, p50, p95, p99 }]) => [
        ...[name, count(answers), figure(p50), figure(p95), figure(p99)],
      ]),
    ),
    '',
    `* Failed requests: ${failed} (target 0: ${met(failed === 0)})`,
    `* p99 during a reload is ${ratio.toFixed(2)} times that of the calm before it, median of ${reloads.length}, quartiles ${quarters.join(' and ')} (target at most ${MOST_P99}: ${met(ratio <= MOST_P99)}); over all of them together ${(during.p99 / calm.p99).toFixed(2)} times`,
    `* Resident memory ${figure(first)} MiB before, ${figure(last)} MiB after the last: ${(100 * change).toFixed(1)} % (target at most ${100 * MOST_MEMORY} % more: ${met(change <= MOST_MEMORY)})`,
    '',
    ...table(
      [
        ...['reload', 'serves after s', 'old gone after s', 'p50 ms', 'p99 ms'],
        ...['p50 before', 'p99 before', 'memory after MiB'],
      ],
      reloads.map(({ readyMs, goneMs, during: own, before, rssMiB }, i) => [
        String(i + 1),
        figure(readyMs / 1000),
        figure(goneMs / 1000),
        figure(own.p50),
        figure(own.p99),
        figure(before.p50),
        figure(before.p99),
        figure(rssMiB),
      ]),
    ),
    '',
  ].join('\n')
}
