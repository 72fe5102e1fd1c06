import { type Average, createAverage } from './average.js'
import {
  choice,
  decide,
  type KvChoice,
  type KvDecision,
  type KvPolicy,
  type KvQuestion,
  type Prices,
} from './decide.js'
import { nonNegativeFit } from './fit.js'

/** Runs of this model on this machine, each alone, in milliseconds above 0. */
export type Calibration = {
  readonly prefill: readonly {
    readonly newTokens: number
    readonly pastTokens: number
    readonly ms: number
  }[]
  /** One micro-batch each. */
  readonly score: readonly CandidateRun[]
  readonly rank: readonly CandidateRun[]
}

type CandidateRun = { readonly candidates: number; readonly tokens: number; readonly ms: number }

/** What tier 2 was measured to do at start-up. */
export type FetchSpeed = {
  readonly roundTripMs: number
  readonly bytesPerSec: number
  /** K/V of one token as tier 2 stores it. */
  readonly bytesPerToken: number
}

export type CostStats = {
  /** See `Costs.breakEvenTokens`. */
  readonly breakEvenTokens: number | undefined
  readonly fetchBytesPerSec: number | undefined
  /** Of the longest history, from nothing. */
  readonly prefillTokensPerSec: number
}

/** Predicted milliseconds, scaled by how measurements have lately compared with predictions. */
export type Costs = Prices & {
  readonly policy: KvPolicy
  /** From then on there is a tier 2. */
  setFetch(speed: FetchSpeed): void
  observePrefill(newTokens: number, pastTokens: number, ms: number): void
  observeScore(candidates: number, tokens: number, ms: number): void
  observeRank(candidates: number, tokens: number, ms: number): void
  /** Ignored before `setFetch`. */
  observeFetch(bytes: number, ms: number): void
  decide(question: KvQuestion): KvChoice
  /** What a decision that is taken already should cost. */
  priceOf(decision: KvDecision, question: KvQuestion): KvChoice
  /**
   * The least length from which on, up to the longest, a history's K/V is fetched sooner than
   * prefilled; undefined where the longest is not.
   */
  breakEvenTokens(): number | undefined
  stats(): CostStats
}

/** The share of the newest measurement: what happened 60 runs ago counts a tenth as much. */
const WEIGHT = 1 / 26

/**
 * The cost model behind "fetch, append, recompute or one pass": a prefill costs a base, per new token,
 * per pair of a new token and one that it sees, and per past token that is read; a score a base, per
 * token, per candidate and per pair; one pass what both do but for the smaller base, and a share more;
 * a fetch a round trip and its bytes. None of it falls with more work, and an append costs no more than
 * a prefill of all. Each kind is scaled by its own moving average; one pass follows its parts as well.
 */
export function createCosts(
  calibration: Calibration,
  policy: KvPolicy & { readonly maxTokens: number },
): Costs {
  const { maxTokens } = policy
  const [base = 0, perToken = 0, perPair = 0, fitted = 0] = fit(
    calibration.prefill.map(({ newTokens, pastTokens, ms }) => ({
      terms: [1, newTokens, newTokens * (pastTokens + newTokens), pastTokens],
      value: ms,
    })),
  )
  // Reading a token costs less than computing it, whatever few measurements say.
  const perPast = Math.min(fitted, perToken)
  const prefill = (newTokens: number, pastTokens: number) =>
    base + newTokens * (perToken + perPair * (pastTokens + newTokens)) + perPast * pastTokens

  const [scoreBase = 0, scorePerToken = 0, perCandidate = 0, perScorePair = 0] = fit(
    calibration.score.map(({ candidates, tokens, ms }) => ({
      terms: [1, tokens, candidates, candidates * tokens],
      value: ms,
    })),
  )
  const score = (candidates: number, tokens: number) =>
    scoreBase + scorePerToken * tokens + candidates * (perCandidate + perScorePair * tokens)

  const scale = {
    prefill: createAverage(WEIGHT),
    score: createAverage(WEIGHT),
    rank: createAverage(WEIGHT),
  }
  const prefillMs = (newTokens: number, pastTokens: number) =>
    scale.prefill.ratio() * prefill(newTokens, pastTokens)
  const scoreMs = (candidates: number, tokens: number) =>
    scale.score.ratio() * score(candidates, tokens)
  /** The arithmetic of both, one run's base saved: less it cannot be, whatever few measurements say. */
  const parts = (candidates: number, tokens: number) =>
    prefillMs(tokens, 0) +
    scoreMs(candidates, tokens) -
    Math.min(scale.prefill.ratio() * base, scale.score.ratio() * scoreBase)
  const excess = calibration.rank.map(
    ({ candidates, tokens, ms }) => ms / parts(candidates, tokens),
  )
  // A busy machine only ever adds.
  const perPart = excess.length === 0 ? 1 : Math.max(1, Math.min(...excess))
  const onePass = (candidates: number, tokens: number) => perPart * parts(candidates, tokens)

  let tier2: (FetchSpeed & { readonly average: Average }) | undefined
  const transfer = ({ roundTripMs, bytesPerSec }: FetchSpeed, bytes: number) =>
    roundTripMs + (bytes / bytesPerSec) * 1000

  const prices: Prices = {
    prefillMs,
    scoreMs,
    rankMs: (candidates, tokens) => scale.rank.ratio() * onePass(candidates, tokens),
    fetchMs: (bytes) => tier2 && tier2.average.ratio() * transfer(tier2, bytes),
  }

  const breakEvenTokens = () => {
    if (tier2 === undefined) return undefined
    const prefillRatio = scale.prefill.ratio()
    const fetchRatio = tier2.average.ratio()
    const fetchPerToken = (tier2.bytesPerToken / tier2.bytesPerSec) * 1000
    return firstAbove(
      prefillRatio * perPair,
      prefillRatio * perToken - fetchRatio * fetchPerToken,
      prefillRatio * base - fetchRatio * tier2.roundTripMs,
      maxTokens,
    )
  }

  return {
    ...prices,
    policy,
    setFetch(speed) {
      tier2 = { ...speed, average: createAverage(WEIGHT) }
    },
    observePrefill(newTokens, pastTokens, ms) {
      scale.prefill.add(ms, prefill(newTokens, pastTokens))
    },
    observeScore(candidates, tokens, ms) {
      scale.score.add(ms, score(candidates, tokens))
    },
    observeRank(candidates, tokens, ms) {
      scale.rank.add(ms, onePass(candidates, tokens))
    },
    observeFetch(bytes, ms) {
      tier2?.average.add(ms, transfer(tier2, bytes))
    },
    decide: (question) => decide(prices, policy, question),
    priceOf: (decision, question) => choice(prices, decision, question),
    breakEvenTokens,
    stats: () => ({
      breakEvenTokens: breakEvenTokens(),
      fetchBytesPerSec: tier2 && tier2.bytesPerSec / tier2.average.ratio(),
      prefillTokensPerSec: (1000 * maxTokens) / prefillMs(maxTokens, 0),
    }),
  }
}

function fit(points: readonly { readonly terms: readonly number[]; readonly value: number }[]) {
  return nonNegativeFit(points, points[0]?.terms.length ?? 0)
}

/** The least n in 1..most with a·x² + b·x + c > 0 for all whole x in n..most; a >= 0. */
function firstAbove(a: number, b: number, c: number, most: number): number | undefined {
  if (!(a * most * most + b * most + c > 0)) return undefined
  const discriminant = b * b - 4 * a * c
  if (discriminant < 0) return 1
  // The larger root, in the form that does not cancel; a falling line is above zero all the way.
  const root =
    b > 0
      ? (-2 * c) / (b + Math.sqrt(discriminant))
      : a > 0
        ? (-b + Math.sqrt(discriminant)) / (2 * a)
        : 0
  return Math.max(1, Math.floor(root) + 1)
}
