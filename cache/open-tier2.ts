import { randomUUID } from 'node:crypto'
import { KV_CODECS, type KvCodecName, planesOf } from '../model/engine/codec/graphs.js'
import type { Engine } from '../model/engine/engine.js'
import type { Manifest } from '../model/manifest.js'
import type { HistoryTokens } from '../model/tokens.js'
import { digestChain } from './digest.js'
import { type UserHash, userHash } from './key.js'
import type { PageShape } from './page.js'
import type { RedisKv } from './redis-kv.js'
import type { ThreadEvent } from './redis-protocol.js'
import { startRedisKv } from './redis-thread.js'
import type { RedisTarget } from './redis-url.js'
import { createRemote, type FetchCosts, kvPages } from './remote.js'
import { createTier2, type Tier2Stats } from './tier2.js'
import { createWriteBehind, type WriteStats } from './write-behind.js'

export { KV_CODECS, type KvCodecName }

export type Tier2Options = {
  readonly target: RedisTarget
  /** Connections that reads take turns on. */
  readonly connections: number
  readonly codec: KvCodecName
  /** How long K/V stays after its last write. */
  readonly ttlMs: number
}

export type Tier2Event =
  | ThreadEvent
  /** Whether lookups are tried at all. */
  | { readonly kind: 'tier2'; readonly circuit: 'open' | 'closed' }

/** What fetching costs: round trip in milliseconds, and bytes of the codec per millisecond behind it. */
export type FetchSpeed = { readonly roundTripMs: number; readonly bytesPerMs: number }

const BYTES = { float64: 8, float32: 4, float16: 2, int8: 1, int32: 4, int64: 8 } as const
const FETCHES = 3

/** Bytes of one token's K/V, all layers, in a codec. */
export function codecTokenBytes({ codec, layers, kWidth, vWidth }: PageShape): number {
  const planes = [kWidth, vWidth].flatMap((width) => planesOf(codec, width))
  return layers * planes.reduce((sum, { type, width }) => sum + width * BYTES[type], 0)
}

/** Tier 2 with all that belongs to it. Resolves whether or not Redis is there. */
export async function openTier2(
  { target, connections, codec, ttlMs }: Tier2Options,
  manifest: Manifest,
  engine: Engine,
  onEvent: (event: Tier2Event) => void,
) {
  const { layers, heads, dqk, dv } = manifest.config
  const { version, precision, appendIsExact } = manifest
  const shape: PageShape = { codec, layers, kWidth: heads * dqk, vWidth: heads * dv }
  const tokenBytes = codecTokenBytes(shape)
  const kv = await startRedisKv(
    { target, connections, codec, precision, version, shape, appendIsExact, ttlMs },
    onEvent,
  )
  const tier2 = createTier2(kv, (circuit) => onEvent({ kind: 'tier2', circuit }))
  const writes = createWriteBehind({
    kv,
    appendIsExact,
    rowsOf: ({ handle }, start) => engine.exportKv(handle, start),
  })
  return {
    tokenBytes,
    writes,
    remote: (costs: FetchCosts, always: boolean) =>
      createRemote({ tier2, engine, costs, appendIsExact, tokenBytes, always }),
    measure: (history: HistoryTokens) => measureFetch(kv, engine, history, tokenBytes),
    /** Tokens of the user's K/V here; undefined when Redis does not say. */
    async tokensOf(user: UserHash, budgetMs: number): Promise<number | undefined> {
      return (await tier2.head(user, budgetMs))?.chain.tokens
    },
    /** @throws what Redis says: nothing is forgotten then */
    async forget(user: UserHash): Promise<void> {
      writes.forget(user)
      await kv.forget(user)
    },
    stats: (): Tier2Stats & { readonly writes: WriteStats } => ({
      ...tier2.stats(),
      writes: writes.stats(),
    }),
    async close(): Promise<void> {
      tier2.stop()
      await writes.close()
      await kv.close()
    },
  }
}

export type OpenTier2 = Awaited<ReturnType<typeof openTier2>>

/**
 * Writes and fetches the K/V of a history of nobody; undefined when Redis is not there. The import
 * into the engine counts: it is part of what a hit costs.
 */
async function measureFetch(
  kv: RedisKv,
  engine: Engine,
  history: HistoryTokens,
  tokenBytes: number,
): Promise<FetchSpeed | undefined> {
  const user = userHash(randomUUID())
  const chain = digestChain(history)
  const handle = await engine.prefill(history)
  try {
    const { layers } = await engine.exportKv(handle)
    await kv.write(user, chain, undefined, { tokens: history.length, layers })
    let roundTripMs = Number.POSITIVE_INFINITY
    let fetchMs = Number.POSITIVE_INFINITY
    for (let i = 0; i < FETCHES; i++) {
      const start = performance.now()
      const head = await kv.head(user)
      const headAt = performance.now()
      if (head === undefined) return undefined
      const rows = await kv.fetch(user, head, history.length)
      engine.release(await engine.importKv(kvPages(rows, history)))
      rows.done()
      roundTripMs = Math.min(roundTripMs, headAt - start)
      fetchMs = Math.min(fetchMs, performance.now() - headAt)
    }
    return { roundTripMs, bytesPerMs: (history.length * tokenBytes) / fetchMs }
  } catch {
    return undefined
  } finally {
    engine.release(handle)
    await kv.forget(user).catch(() => {})
  }
}
