import type { Engine } from '../model/engine/engine.js'
import { type Bundle, hasRetrieval } from '../model/manifest.js'
import { buildCandidates, buildHistory } from '../model/sequence.js'
import type { Vectors } from '../model/vectors.js'
import { createDeadline } from './deadline.js'
import { chunkItemsFor, createSearch } from './search.js'

const BEST = 10

/**
 * Largest difference between what a retrieval head says and what it must: the best items of the list for the
 * longest test vector have the scores that the graph `score` gives them, and none of the vector's own
 * candidates, whose oracle scores are known, belongs among them and is not. 0 without a head.
 */
export async function retrievalDifference(
  engine: Engine,
  { vocabulary, manifest }: Bundle,
  vectors: Vectors,
): Promise<number> {
  const { candidates: list } = vocabulary
  const vector = vectors.at(-1)
  if (list === undefined || vector === undefined || !hasRetrieval(manifest)) return 0
  const { request, logits } = vector
  const history = buildHistory(request, vocabulary)
  if (history.candidate === undefined) return Number.POSITIVE_INFINITY
  const now = () => performance.now()
  const chunkItems = chunkItemsFor(engine, manifest)
  const search = createSearch({ engine, list, chunkItems, now })
  const handle = await engine.prefill(history.tokens)
  try {
    const user = await engine.encode(handle, history.candidate, request.time)
    const none = new Int32Array(0)
    const { best } = await search.run(user, BEST, none, createDeadline({}, now(), now), undefined)
    const found = best.map(({ place }) => ({ item: list.itemAt(place) }))
    const { rows } = buildCandidates({ ...request, candidates: found }, vocabulary, history)
    const scored = await engine.score(handle, rows, request.time)
    const least = best.length < list.length ? (best.at(-1)?.score ?? Number.NaN) : -1
    const missed = request.candidates.map(({ item }, i) => {
      const isIn = list.placeOf(item) === undefined || found.some((other) => other.item === item)
      return isIn ? 0 : Math.max(0, (logits[i]?.[0] ?? Number.NaN) - least)
    })
    const differences = best.map(({ score }, i) => Math.abs(score - (scored[i] ?? Number.NaN)))
    return Math.max(...differences, ...missed)
  } finally {
    engine.release(handle)
  }
}
