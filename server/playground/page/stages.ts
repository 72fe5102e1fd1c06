import type { RankTimings } from '../../../falcon/types.js'

/** The stages of one request on a common axis; pure. */

export type StageName = 'parse' | 'sequence' | 'history' | 'score' | 'heads'

export type Stage = {
  readonly name: StageName
  readonly what: string
  readonly ms: number
  /** Where it starts and ends, as shares of the whole. */
  readonly from: number
  readonly to: number
}

const WHAT = {
  parse: 'JSON and schema',
  sequence: 'history and candidates to tokens',
  history: 'cache lookup, prefill or append, wait for a worker',
  score: 'micro-batches of candidates',
  heads: 'predictions, value formula, top-k',
} as const satisfies Record<StageName, string>

/** In the order they happen, end to end. */
export function stagesOf(timings: RankTimings & { readonly parseMs: number }): Stage[] {
  const parts: readonly (readonly [StageName, number])[] = [
    ['parse', timings.parseMs],
    ['sequence', timings.sequenceMs],
    ['history', timings.historyMs],
    ['score', timings.scoreMs],
    ['heads', timings.headsMs],
  ]
  const total = parts.reduce((sum, [, ms]) => sum + ms, 0)
  let before = 0
  return parts.map(([name, ms]) => {
    const from = total === 0 ? 0 : before / total
    before += ms
    return { name, what: WHAT[name], ms, from, to: total === 0 ? 0 : before / total }
  })
}

/** Sizes of the micro-batches that so many scored candidates were split into: they differ by at most one. */
export function microBatchSizes(scored: number, microBatches: number): number[] {
  return Array.from(
    { length: microBatches },
    (_, i) =>
      Math.floor(((i + 1) * scored) / microBatches) - Math.floor((i * scored) / microBatches),
  )
}
