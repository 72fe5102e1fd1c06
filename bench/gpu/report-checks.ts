// The page's parts on the whole service: HTTP, equality of scores, growth of memory.
import { count, figure, table } from '../markdown.js'
import type { Growth } from './checks.js'
import type { GpuHttp } from './http.js'
import type { GpuResult } from './result.js'

/** The folder of kernels is the machine's own affair. */
function shown(flags: readonly string[]): string {
  return flags.map((flag) => (flag.includes('/') ? 'DIR' : flag)).join(' ')
}

export function httpSection({ flags, kinds }: GpuHttp, more = ''): string[] {
  return [
    `## HTTP, end to end${more}`,
    '',
    `\`peregrine serve\` with \`${shown(flags)}\` and the client over loopback on the same host: paper shape with relative bias, fp16, 1,023 events and 1,024 candidates in the body, the best 100 in the answer. Hit: 32 users whose K/V is cached; miss: every request names a user never seen before. One at a time: 50 requests. Capacity: 16 connections, each with one request at a time. Loads: Poisson arrivals at a share of that capacity for 5 s; the wait counts from the moment a request was due. Event-loop delay is the server's own (an idle loop reads 10 to 11: the timer's own period); busy is its time in parsing, tokens, heads and JSON.`,
    '',
    ...table(
      ['K/V', 'one at a time, p50 ms', 'p99 ms', 'capacity, requests/s'],
      kinds.map(({ kv, single, capacityPerSecond }) => [
        kv,
        figure(single.p50),
        figure(single.p99),
        count(capacityPerSecond),
      ]),
    ),
    '',
    ...table(
      [
        'K/V',
        'load',
        'offered/s',
        'answered',
        'failed',
        'p50 ms',
        'p99 ms',
        'event-loop delay p99 ms',
        'busy',
      ],
      kinds.flatMap(({ kv, loads }) =>
        loads.map((load) => [
          kv,
          percent(load.share),
          count(load.offeredPerSecond),
          count(load.count),
          count(load.failed),
          figure(load.p50),
          figure(load.p99),
          figure(load.eventLoopP99Ms),
          percent(load.eventLoopBusy),
        ]),
      ),
    ),
    '',
  ]
}

export function equalitySection({ fp16, fp32 }: GpuResult['equality']): string[] {
  const ways = [...new Set([...fp16, ...fp32].map(({ what }) => what))]
  const exponent = (value: number | undefined) => value?.toExponential(1) ?? figure(undefined)
  return [
    '## The same scores by every way',
    '',
    'Largest difference of a logit from float32 on the CPU, absolute and over the largest logit: paper shape with relative bias, full history, 256 candidates, the same weights in both precisions. Appended: the last 37 tokens were added to the K/V of the others.',
    '',
    ...table(
      ['engine and way', 'fp16', 'fp16, relative', 'fp32', 'fp32, relative'],
      ways.map((way) => [
        way,
        ...[fp16, fp32].flatMap((differences) => {
          const found = differences.find(({ what }) => what === way)
          return [exponent(found?.absolute), exponent(found?.relative)]
        }),
      ]),
    ),
    '',
  ]
}

export function growthSection(
  { requests, usedMiB, spills, restores }: Growth,
  more = '',
): string[] {
  return [
    `## Growth of the GPU's memory${more}`,
    '',
    `${count(requests)} mixed prefills, appends, scores and one-pass runs of 300 users, 16 at a time, with room on the GPU for a third of their K/V: the driver says ${usedMiB.map(count).join(', ')} MiB in use after each tenth of them. K/V went to the host ${count(spills)} times and came back ${count(restores)} times.`,
    '',
  ]
}

const percent = (share: number) => `${(100 * share).toFixed(0)} %`
