import { type UserHash, userHash } from '../cache/key.js'
import type { KvCache } from '../cache/kv.js'
import { RankError } from '../model/errors.js'
import { type Bundle, hasRetrieval } from '../model/manifest.js'
import { Notes } from '../model/notes.js'
import type { RetrieveInput } from '../model/request.js'
import type { CandidateList } from '../model/retrieval.js'
import { timed } from '../model/step.js'
import { createDeadline, type Deadline } from './deadline.js'
import { checkFinite, micros } from './numbers.js'
import { decisionOf, type Routes } from './routes.js'
import { chunkItemsFor, createSearch, type SearchOptions } from './search.js'
import type { Sequence, Sequenced } from './sequence.js'
import type { Ranker, RetrieveOptions, RetrieveResult } from './types.js'

export type RetrievalOptions = Pick<SearchOptions, 'engine' | 'now' | 'itemMs'> & {
  readonly bundle: Bundle
  readonly kv: KvCache
  readonly routes: Routes
  readonly sequence: Sequence
  /** The most items in one run; chosen by the device when absent. */
  readonly chunkItems: number | undefined
}

/** What a bundle with a retrieval head can do more; without one `retrieve` refuses. */
export function openRetrieval(options: RetrievalOptions): {
  readonly retrieve: Ranker['retrieve']
  readonly retrieval?: Pick<ReturnType<typeof createSearch>, 'predictMs'> & {
    readonly model: NonNullable<Ranker['model']['retrieval']>
  }
} {
  const { engine, bundle, itemMs, now } = options
  const { manifest, vocabulary } = bundle
  const list = vocabulary.candidates
  if (list === undefined || !hasRetrieval(manifest)) {
    return {
      async retrieve() {
        const message = `model ${manifest.name} has no retrieval head: it ranks given candidates`
        throw new RankError('INVALID_REQUEST', message, { path: '/model' })
      },
    }
  }
  const chunkItems = options.chunkItems ?? chunkItemsFor(engine, manifest)
  const search = createSearch({ engine, list, chunkItems, itemMs, now })
  return {
    retrieve: createRetriever({ ...options, list, search, chunkItems }),
    retrieval: { model: { items: list.length, chunkItems }, predictMs: search.predictMs },
  }
}

/**
 * Next-item retrieval: tokens, K/V of the history, the user at its end, exact search of the candidate list.
 * The K/V does not hold the user's last event, whose row is what the user is read from: it travels with the
 * request and is computed each time, so that a hit, an append and a miss give the same.
 */
function createRetriever(
  options: RetrievalOptions & {
    readonly list: CandidateList
    readonly search: ReturnType<typeof createSearch>
    readonly chunkItems: number
  },
): Ranker['retrieve'] {
  const { engine, bundle, kv, routes, list, search, chunkItems, sequence, now } = options

  const encode = async (
    { history }: Sequenced,
    { time }: RetrieveInput,
    user: UserHash,
    { signal }: Deadline,
    epoch: ReturnType<KvCache['begin']>,
    { onStep }: RetrieveOptions,
  ) => {
    const { tokens, candidate } = history
    if (candidate === undefined) throw new RankError('INTERNAL', 'no last event in the tokens')
    const start = now()
    const { lease, ...use } = await (routes.isUnkept(history)
      ? kv.prefill(tokens, signal, onStep)
      : kv.obtain(user, tokens, signal, epoch, onStep))
    try {
      const obtained = now()
      const run = () => engine.encode(lease.handle, candidate, time, signal)
      const vector = await timed(onStep, 'encode', run, () => ({ tokens: tokens.length }))
      const priced = routes.priced(decisionOf(use), use, tokens.length, 1)
      const encoded = now()
      const kvUse = { ...priced, measuredMs: micros(encoded - start) }
      return { vector, kvUse, historyMs: obtained - start, encodeMs: encoded - obtained }
    } finally {
      lease.done()
    }
  }

  return async (input, retrieveOptions) => {
    const { topK, waitedMs = 0, onStep } = retrieveOptions
    const start = now()
    const deadline = createDeadline(retrieveOptions, start - waitedMs, now)
    const user = userHash(input.user.id)
    const epoch = kv.begin(user)
    try {
      const sequenced = await sequence(input, user, retrieveOptions, deadline)
      const { excluded, unknown, warnings } = exclusions(list, input, sequenced)
      deadline.isOver(0)
      const tokensEnd = now()
      onStep?.('sequence', sequenced.startMs, tokensEnd, {
        tokens: sequenced.history.tokens.length,
      })
      const encoded = await encode(sequenced, input, user, deadline, epoch, retrieveOptions)
      const { vector, kvUse, historyMs, encodeMs } = encoded
      checkFinite(vector, bundle.manifest.precision)
      const searchStart = now()
      const { best, chunkMs } = await search.run(vector, topK, excluded, deadline, onStep)
      const end = now()
      const { history } = sequenced
      return {
        items: best.map(({ place, score }) => ({ item: list.itemAt(place), score, index: place })),
        kv: kvUse,
        timings: {
          sequenceMs: micros(tokensEnd - start),
          historyMs: micros(historyMs),
          encodeMs: micros(encodeMs),
          searchMs: micros(end - searchStart),
          totalMs: micros(end - start),
        },
        warnings: [...history.warnings, ...warnings],
        historyTokens: history.tokens.length,
        truncatedEvents: history.truncatedEvents,
        unknownItems: { history: history.unknownItems, exclude: unknown },
        listed: list.length,
        excluded: excluded.length,
        chunkMs,
        chunkItems,
      } satisfies RetrieveResult
    } finally {
      epoch.end()
      deadline.end()
    }
  }
}

/** Places that stay out, ascending, each once: what the user met, where that is asked for, and `exclude`. */
function exclusions(
  list: CandidateList,
  { exclude, excludeHistory, histories }: RetrieveInput,
  { stored }: Sequenced,
) {
  const places = new Set<number>()
  const notes = new Notes()
  const add = (item: string) => {
    const place = list.placeOf(item)
    if (place !== undefined) places.add(place)
    return place !== undefined
  }
  for (const item of exclude) {
    if (!add(item)) notes.unknownItem(item)
  }
  notes.warnOfUnknownItems('excluded items are not in the candidate list')
  if (excludeHistory) {
    for (const { item } of [...(stored?.events ?? []), ...histories.flat()]) add(item)
  }
  return {
    excluded: Int32Array.from(places).sort(),
    unknown: notes.unknownItems(),
    warnings: notes.list(),
  }
}
