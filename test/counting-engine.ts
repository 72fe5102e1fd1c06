import type { Engine, KvHandle } from '../model/engine/engine.js'
import { RankError } from '../model/errors.js'
import type { HistoryTokens } from '../model/tokens.js'

export type CountingEngine = Engine & {
  /** The tokens that a handle's K/V was made of, as one text. @throws when it was released */
  contentOf(handle: KvHandle): string
  /** Prefills so far, and tokens that they ran. */
  readonly counts: { prefills: number; tokens: number; released: number }
  /** Handles made and not released. */
  live(): number
  /** The next so many prefills fail. */
  failNext(count: number): void
  /** As if the worker that holds it had died. */
  kill(handle: KvHandle): void
}

export const BYTES_PER_TOKEN = 10

/**
 * An engine whose K/V is the tokens themselves: what a cache is tested against. Answers after a turn
 * of the event loop; throws at whatever an engine must never be asked.
 */
export function createCountingEngine(): CountingEngine {
  const contents = new Map<KvHandle, string[]>()
  const dead = new Set<KvHandle>()
  const counts = { prefills: 0, tokens: 0, released: 0 }
  let failures = 0
  const held = (handle: KvHandle) => {
    const content = contents.get(handle)
    if (content === undefined) throw new Error('this handle was released')
    return content
  }
  const unused = () => Promise.reject(new Error('no part of this test'))
  return {
    name: 'counting',
    counts,
    async prefill(history, past, signal) {
      signal?.throwIfAborted()
      counts.prefills++
      counts.tokens += history.length
      // The past is read when the worker gets to it, behind what was sent before.
      await new Promise((resolve) => setImmediate(resolve))
      signal?.throwIfAborted()
      if (failures > 0) {
        failures--
        throw new RankError('WORKER_CRASHED', 'as asked')
      }
      const kept = past === undefined ? [] : held(past.handle).slice(0, past.tokens)
      if (kept.length !== (past?.tokens ?? 0)) throw new Error('more past than there is')
      const content = [...kept, ...tokenTexts(history)]
      const bytes = content.length * BYTES_PER_TOKEN
      const handle: KvHandle = { tokens: content.length, bytes, device: 'test' }
      contents.set(handle, content)
      return handle
    },
    release(handle) {
      held(handle)
      contents.delete(handle)
      counts.released++
    },
    isAlive: (handle) => contents.has(handle) && !dead.has(handle),
    contentOf: (handle) => held(handle).join(' '),
    live: () => contents.size,
    failNext: (count) => {
      failures = count
    },
    kill: (handle) => {
      dead.add(handle)
    },
    score: unused,
    rank: unused,
    encode: unused,
    retrieve: unused,
    kvPrecision: 'fp32',
    exportKv: unused,
    importKv: unused,
    warmUp: unused,
    stats: () => ({ workers: 1, pendingJobs: 0, restarts: 0 }),
    close: async () => {},
  }
}

export function contentOf(history: HistoryTokens): string {
  return tokenTexts(history).join(' ')
}

function tokenTexts({ rows, actions, times, length }: HistoryTokens): string[] {
  const slots = length === 0 ? 0 : rows.length / length
  return Array.from({ length }, (_, i) =>
    [...rows.subarray(i * slots, (i + 1) * slots), actions[i], times[i]].join(),
  )
}

/** `length` tokens, two rows each, that all differ; `salt` makes another history. */
export function plainTokens(length: number, salt = 0): HistoryTokens {
  return {
    rows: Int32Array.from({ length: length * 2 }, (_, i) => salt * 1000 + i),
    actions: Int32Array.from({ length }, (_, i) => i % 4),
    times: Float64Array.from({ length }, (_, i) => 1_700_000_000 + i),
    length,
  }
}

/** `tokens` with token `at` changed. */
export function edited(tokens: HistoryTokens, at: number): HistoryTokens {
  const rows = tokens.rows.slice()
  rows[at * 2] = -1
  return { ...tokens, rows }
}
