import { quantile, type Sample, total, totalsBy } from './exposition.js'
import { bytes, count, digits, duration, percent } from './format.js'

/** What the metrics tab says, from two scrapes; pure. */

export type Scrape = { readonly atMs: number; readonly samples: readonly Sample[] }

export type Figure = {
  readonly title: string
  readonly big: string
  readonly lines: readonly string[]
  /** What its sparkline follows; absent = none. */
  readonly trend?: number
}

const RANK = { route: '/v1/rank' }

/** Rates are over the time since `before`; everything else is since the server started. */
export function figuresOf(now: Scrape, before: Scrape | undefined): Figure[] {
  const of = (name: string, labels = {}) => total(now.samples, name, labels) ?? 0
  const rate = (name: string, labels = {}) => {
    if (before === undefined || now.atMs <= before.atMs) return 0
    const grown = of(name, labels) - (total(before.samples, name, labels) ?? 0)
    return Math.max(0, grown / ((now.atMs - before.atMs) / 1000))
  }
  const at = (name: string, q: number, labels = {}) =>
    duration(1000 * (quantile(now.samples, name, q, labels) ?? Number.NaN))

  const perSecond = rate('peregrine_requests_total', RANK)
  const lagMs = 1000 * of('nodejs_eventloop_lag_p99_seconds')
  return [
    {
      title: 'Rankings',
      big: `${digits(perSecond)} /s`,
      lines: [
        `${count(of('peregrine_requests_total', RANK), 'request')} to /v1/rank`,
        `${count(of('peregrine_candidates_total'), 'candidate')} scored`,
      ],
      trend: perSecond,
    },
    {
      title: 'Latency of /v1/rank, p50',
      big: at('peregrine_request_seconds', 0.5, RANK),
      lines: [
        `p90 ${at('peregrine_request_seconds', 0.9, RANK)}, p99 ${at('peregrine_request_seconds', 0.99, RANK)}`,
      ],
    },
    stages(now),
    cache(now),
    {
      title: 'K/V memory',
      big: bytes(of('peregrine_kv_bytes')),
      lines: [
        `of ${bytes(of('peregrine_kv_max_bytes'))}, ${count(of('peregrine_kv_entries'), 'user')}`,
        count(of('peregrine_kv_evictions_total'), 'eviction'),
      ],
      trend: of('peregrine_kv_bytes'),
    },
    {
      title: 'Workers',
      big: String(of('peregrine_engine_workers')),
      lines: [
        `${count(of('peregrine_engine_pending_jobs'), 'job')} waiting, ${of('peregrine_inflight_requests')} rankings in flight`,
        count(of('peregrine_engine_restarts_total'), 'restart'),
      ],
    },
    {
      title: 'Event loop delay, p99',
      big: duration(lagMs),
      lines: [
        `mean ${duration(1000 * of('nodejs_eventloop_lag_mean_seconds'))}: inference runs on other threads`,
      ],
      trend: lagMs,
    },
    {
      title: 'Process',
      big: bytes(of('process_resident_memory_bytes')),
      lines: [`${percent(rate('process_cpu_seconds_total'))} of one core`],
      trend: of('process_resident_memory_bytes'),
    },
    errors(now),
  ]
}

function stages({ samples }: Scrape): Figure {
  const sums = totalsBy(samples, 'peregrine_stage_seconds_sum', 'stage')
  const counts = totalsBy(samples, 'peregrine_stage_seconds_count', 'stage')
  const means = [...sums].map(
    ([name, sum]) => [name, (1000 * sum) / (counts.get(name) ?? 1)] as const,
  )
  const [slowest] = means.toSorted((a, b) => b[1] - a[1])
  return {
    title: 'Slowest stage, mean',
    big: slowest === undefined ? '–' : `${slowest[0]} ${duration(slowest[1])}`,
    lines: [
      means.map(([name, ms]) => `${name} ${duration(ms)}`).join(', ') || 'nothing ranked yet',
    ],
  }
}

function cache({ samples }: Scrape): Figure {
  const states = totalsBy(samples, 'peregrine_kv_lookups_total', 'state')
  const all = [...states.values()].reduce((sum, n) => sum + n, 0)
  const useful = (states.get('hit') ?? 0) + (states.get('stale') ?? 0)
  const reused = total(samples, 'peregrine_tokens_reused_total') ?? 0
  const prefilled = total(samples, 'peregrine_tokens_prefilled_total') ?? 0
  return {
    title: 'K/V found',
    big: all === 0 ? '–' : percent(useful / all),
    lines: [
      [...states].map(([state, n]) => `${state} ${digits(n)}`).join(', ') ||
        'nothing looked up yet',
      `${count(reused, 'token')} reused, ${count(prefilled, 'token')} prefilled`,
    ],
  }
}

function errors({ samples }: Scrape): Figure {
  const codes = totalsBy(samples, 'peregrine_errors_total', 'code')
  const all = [...codes.values()].reduce((sum, n) => sum + n, 0)
  return {
    title: 'Errors',
    big: digits(all),
    lines: [[...codes].map(([code, n]) => `${code} ${n}`).join(', ') || 'none so far'],
  }
}
