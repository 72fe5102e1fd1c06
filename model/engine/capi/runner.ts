import { RankError } from '../../errors.js'
import type { GraphName, Manifest, RetrievalGraphName } from '../../manifest.js'
import { type HistoryTokens, sliceTokens, writeTimes } from '../../tokens.js'
import type { RankUser, RetrieveChunk, Retrieved } from '../engine.js'
import { packUsers, splitLogits } from '../rank-batch.js'
import type { Blocks } from './blocks.js'
import type { KvEntry, KvStore } from './kv-store.js'
import type { TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'
import { createScope, type Scope } from './scope.js'
import type { Session } from './sessions.js'

type Parts = {
  readonly ort: Ort
  readonly sessions: Readonly<Record<GraphName, Session>>
  /** Of a retrieval head. */
  readonly retrieval: Readonly<Record<RetrievalGraphName, Session>> | undefined
  readonly store: KvStore
  readonly blocks: Blocks
  readonly host: TensorMemory
  readonly manifest: Manifest
  /**
   * History tokens per prefill run. Chunks bound the (H, chunk, n) score matrix and skip the part of
   * the causal square that lies behind a chunk; smaller ones run more matrix products of low height.
   */
  readonly prefillChunkTokens: number
}

export type Runner = ReturnType<typeof createRunner>

/** Feeds the three graphs; every run writes its outputs where they belong. `options`: OrtRunOptions. */
export function createRunner(parts: Parts) {
  const { ort, sessions, retrieval, store, blocks, host, manifest, prefillChunkTokens } = parts
  const { config } = manifest
  const { slots } = manifest.embedding
  const tasks = config.tasks.length

  const scoped = async <T>(work: (scope: Scope) => Promise<T>): Promise<T> => {
    const scope = createScope(ort, host)
    try {
      return await work(scope)
    } finally {
      scope.end()
    }
  }

  const headOf = (name: RetrievalGraphName): Session => {
    if (retrieval !== undefined) return retrieval[name]
    throw new RankError('MODEL_CONTRACT', 'the bundle has no retrieval head')
  }

  /** Rows (m, slots) against an entry's K and V, into one output. */
  const runRows = async (
    session: Session,
    entry: KvEntry,
    candidates: Int32Array,
    queryTime: number,
    output: {
      readonly name: string
      readonly data: Float32Array
      readonly dims: readonly number[]
    },
    options: Pointer,
  ): Promise<void> => {
    await blocks.beginRun(entry.block)
    try {
      await scoped((scope) =>
        session.run(
          {
            rows: scope.tensor(candidates, [candidates.length / slots, slots]),
            query_time: scope.tensor(BigInt64Array.of(BigInt(queryTime)), [1]),
            ...store.valuesOf(entry),
          },
          { [output.name]: scope.tensor(output.data, output.dims) },
          options,
        ),
      )
    } finally {
      blocks.endRun(entry.block)
    }
  }

  const prefillChunk = (entry: KvEntry, start: number, chunk: HistoryTokens, options: Pointer) => {
    const end = start + chunk.length
    writeTimes(entry.block.times, chunk.times, start)
    return scoped((scope) =>
      sessions.prefill.run(
        {
          rows: scope.tensor(chunk.rows, [chunk.length, slots]),
          actions: scope.tensor(chunk.actions, [chunk.length]),
          ...scope.own({ times: store.times(entry, end) }),
          ...scope.own(store.rows(entry, 0, start, 'past_k.', 'past_v.')),
        },
        scope.own(store.rows(entry, start, end, 'k.', 'v.')),
        options,
      ),
    )
  }

  return {
    async prefill(
      history: HistoryTokens,
      past: { entry: KvEntry; tokens: number } | undefined,
      options: Pointer,
      signal?: AbortSignal,
    ): Promise<KvEntry> {
      const kept = past?.tokens ?? 0
      if (past !== undefined) await blocks.beginRun(past.entry.block)
      try {
        const entry = await store.extend(kept + history.length, past)
        try {
          for (let start = 0; start < history.length; start += prefillChunkTokens) {
            // A run that was terminated between two chunks must not go on with the next.
            signal?.throwIfAborted()
            const end = Math.min(start + prefillChunkTokens, history.length)
            await prefillChunk(entry, kept + start, sliceTokens(history, start, end), options)
          }
          return entry
        } catch (error) {
          store.abandon(entry, kept)
          throw error
        } finally {
          blocks.endRun(entry.block)
        }
      } finally {
        if (past !== undefined) blocks.endRun(past.entry.block)
      }
    },

    /**
     * Logits (m, tasks). The entry has at least one token: ONNX Runtime's matrix product stops the
     * process (SIGFPE) when n is 0.
     */
    async score(
      entry: KvEntry,
      candidates: Int32Array,
      queryTime: number,
      options: Pointer,
    ): Promise<Float32Array> {
      const m = candidates.length / slots
      const logits = new Float32Array(m * tasks)
      if (m === 0) return logits
      const output = { name: 'logits', data: logits, dims: [m, tasks] }
      await runRows(sessions.score, entry, candidates, queryTime, output, options)
      return logits
    },

    /** The user (D) at the end of an entry, which has at least one token. `row`: (slots). */
    async encode(
      entry: KvEntry,
      row: Int32Array,
      queryTime: number,
      options: Pointer,
    ): Promise<Float32Array> {
      const user = new Float32Array(config.dModel)
      const output = { name: 'user', data: user, dims: [1, config.dModel] }
      await runRows(headOf('encode'), entry, row, queryTime, output, options)
      return user
    },

    async retrieve(
      user: Float32Array,
      { from, count, excluded, k }: RetrieveChunk,
      options: Pointer,
    ): Promise<Retrieved> {
      const scores = new Float32Array(k)
      const places = new BigInt64Array(k)
      const number = (value: number) => BigInt64Array.of(BigInt(value))
      await scoped((scope) =>
        headOf('retrieve').run(
          {
            user: scope.tensor(user, [1, user.length]),
            from: scope.tensor(number(from), [1]),
            count: scope.tensor(number(count), [1]),
            excluded: scope.tensor(excluded, [excluded.length]),
            k: scope.tensor(number(k), [1]),
          },
          { scores: scope.tensor(scores, [k]), places: scope.tensor(places, [k]) },
          options,
        ),
      )
      return { scores, places }
    },

    /** Logits (m, tasks) per user, padded to the longest history and the most candidates. */
    async rank(users: readonly RankUser[], options: Pointer): Promise<Float32Array[]> {
      if (users.length === 0) return []
      const batch = packUsers(users, slots)
      const { count, n, m } = batch
      const logits = new Float32Array(count * m * tasks)
      await scoped((scope) =>
        sessions.rank.run(
          {
            rows: scope.tensor(batch.rows, [count, n, slots]),
            actions: scope.tensor(batch.actions, [count, n]),
            times: scope.tensor(batch.times, [count, n]),
            lengths: scope.tensor(batch.lengths, [count]),
            candidate_rows: scope.tensor(batch.candidateRows, [count, m, slots]),
            query_times: scope.tensor(batch.queryTimes, [count]),
          },
          { logits: scope.tensor(logits, [count, m, tasks]) },
          options,
        ),
      )
      return splitLogits(logits, batch)
    },
  }
}
