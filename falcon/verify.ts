import type { Engine } from '../model/engine/engine.js'
import { RankError } from '../model/errors.js'
import type { Bundle } from '../model/manifest.js'
import { buildCandidates, buildHistory } from '../model/sequence.js'
import { readVectors, TOLERANCE } from '../model/vectors.js'
import { retrievalDifference } from './verify-retrieval.js'

export type Verification = {
  readonly cases: number
  /** Largest absolute logit difference to the slow oracle, over all cases and both routes. */
  readonly maxDifference: number
  readonly tolerance: number
}

/**
 * Runs the bundle's test vectors through an engine, by prefill and score and, all users in one
 * padded batch, by rank; a retrieval head by the longest of them.
 * @throws {RankError} MODEL_CONTRACT when a logit is further from the oracle than the bundle tolerates
 */
export async function verifyBundle(engine: Engine, bundle: Bundle): Promise<Verification> {
  const { vocabulary, manifest } = bundle
  const vectors = readVectors(bundle)
  const users = vectors.map(({ request }) => {
    const history = buildHistory(request, vocabulary)
    const candidates = buildCandidates(request, vocabulary, history).rows
    return { history: history.tokens, candidates, queryTime: request.time }
  })
  const batched = await engine.rank(users)
  let maxDifference = await retrievalDifference(engine, bundle, vectors)
  for (const [i, user] of users.entries()) {
    const expected = vectors[i]?.logits.flat() ?? []
    const handle = await engine.prefill(user.history)
    try {
      const scored = await engine.score(handle, user.candidates, user.queryTime)
      maxDifference = Math.max(
        maxDifference,
        largestDifference(scored, expected),
        largestDifference(batched[i] ?? new Float32Array(0), expected),
      )
    } finally {
      engine.release(handle)
    }
  }
  const { kernels } = engine.stats()
  // A bundle states what its own precision needs.
  const tolerance = Math.max(
    manifest.vectors.tolerance,
    kernels === undefined ? 0 : TOLERANCE[kernels.arithmetic],
  )
  if (!(maxDifference <= tolerance)) {
    throw new RankError(
      'MODEL_CONTRACT',
      `bundle ${manifest.name} on ${engine.name}: logits differ by ${maxDifference.toExponential(2)} from the test vectors, expected at most ${tolerance}${kernels === undefined ? '' : `; ${kernels.library} is in use, --kernels off runs without it`}`,
    )
  }
  return { cases: vectors.length, maxDifference, tolerance }
}

/** Largest absolute difference; infinite when the lengths differ or a value is not a number. */
export function largestDifference(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (got.length !== expected.length) return Number.POSITIVE_INFINITY
  let largest = 0
  for (let i = 0; i < got.length; i++) {
    const difference = Math.abs((got[i] ?? 0) - (expected[i] ?? 0))
    if (Number.isNaN(difference)) return Number.POSITIVE_INFINITY
    largest = Math.max(largest, difference)
  }
  return largest
}
