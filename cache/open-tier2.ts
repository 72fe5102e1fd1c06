import { randomUUID } from 'node:crypto'
import { deferred, withinMs } from '../model/deferred.js'
import { type KvCodecName, planeBytes } from '../model/engine/codec/graphs.js'
import type { Engine } from '../model/engine/engine.js'
import { arrayWidths, kvShape } from '../model/engine/kv-shape.js'
import { RankError } from '../model/errors.js'
import type { Manifest } from '../model/manifest.js'
import type { HistoryTokens } from '../model/tokens.js'
import type { Costs, FetchSpeed } from './costs.js'
import { digestChain } from './digest.js'
import { type UserHash, userHash } from './key.js'
import type { Lease } from './memory.js'
import type { PageShape } from './page.js'
import type { RedisKv } from './redis-kv.js'
import type { ThreadEvent } from './redis-protocol.js'
import { startRedisKv } from './redis-thread.js'
import type { RedisTarget } from './redis-url.js'
import { createRemote, encodedKv } from './remote.js'
import { createTier2, type Tier2Stats } from './tier2.js'
import { createWriteBehind, type WriteStats } from './write-behind.js'

export type { KvCodecName }

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

export type OpenTier2Stats = Tier2Stats & { readonly writes: WriteStats }

const FETCHES = 3
/** How long a start waits for Redis, which may be away for good. */
const FIRST_CONNECTION_MS = 1_000

/** Bytes of one token's K/V, all layers, in a codec. */
export function codecTokenBytes(shape: PageShape): number {
  return planeBytes(shape.codec, arrayWidths(shape)).reduce((sum, bytes) => sum + bytes, 0)
}

/** Tier 2 with all that belongs to it. Resolves whether or not Redis is there. */
export async function openTier2(
  { target, connections, codec, ttlMs }: Tier2Options,
  manifest: Manifest,
  engine: Engine,
  onEvent: (event: Tier2Event) => void,
) {
  const { config, version, appendIsExact } = manifest
  const precision = engine.kvPrecision
  const shape: PageShape = { codec, ...kvShape(config), maxTokens: config.maxTokens }
  const tokenBytes = codecTokenBytes(shape)
  let isConnected = false
  let onConnected = () => {}
  const kv = await startRedisKv(
    { target, connections, codec, precision, version, shape, appendIsExact, ttlMs },
    (event) => {
      onEvent(event)
      if (!('role' in event) || event.role !== 'kv-write') return
      isConnected = event.kind === 'redisReady'
      if (isConnected) onConnected()
    },
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
    /** For the K/V cache: K/V is fetched and written where that should be cheaper than computing it. */
    cacheParts(costs: Pick<Costs, 'policy' | 'prefillMs' | 'fetchMs' | 'observeFetch'>) {
      const always = costs.policy.kv === 'always'
      const pays = (tokens: number) =>
        always ||
        (costs.fetchMs(tokens * tokenBytes) ?? Number.POSITIVE_INFINITY) <
          costs.prefillMs(tokens, 0)
      return {
        remote: createRemote({ tier2, engine, costs, appendIsExact, tokenBytes, always }),
        writes: {
          offer(user: UserHash, lease: Lease) {
            if (pays(lease.handle.tokens)) writes.offer(user, lease)
            else lease.done()
          },
        },
      }
    },
    /**
     * Measures what fetching `history` costs now and whenever Redis is there anew. Resolves after the
     * first measurement, or soon where Redis is not there.
     */
    async watchSpeed(history: HistoryTokens, onSpeed: (speed: FetchSpeed) => void): Promise<void> {
      const measure = async () => {
        const speed = await measureFetch(kv, engine, history, tokenBytes)
        if (speed !== undefined) onSpeed(speed)
      }
      const first = deferred<void>()
      onConnected = () => void measure().then(first.resolve)
      if (isConnected) onConnected()
      await withinMs(first.promise, FIRST_CONNECTION_MS, () => {})
    },
    /** Tokens of the user's K/V here; undefined when Redis does not say. */
    async tokensOf(user: UserHash, budgetMs: number): Promise<number | undefined> {
      const found = kv.head(user).then(
        (head) => head?.chain.tokens ?? 0,
        () => undefined,
      )
      return withinMs(found, budgetMs, () => undefined)
    },
    /** @throws {RankError} STORE_UNAVAILABLE: it may still be there */
    async forget(user: UserHash): Promise<void> {
      writes.forget(user)
      try {
        await kv.forget(user)
      } catch {
        const message = 'Redis must delete the K/V, got no answer: try again'
        throw new RankError('STORE_UNAVAILABLE', message)
      }
    },
    /** What may die and is started anew; undefined meanwhile. */
    thread: kv.thread,
    stats: (): OpenTier2Stats => ({
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
      const fetched = await kv.fetch(user, head, history.length)
      try {
        engine.release(await engine.importKv(encodedKv(fetched, history)))
      } finally {
        fetched.done()
      }
      roundTripMs = Math.min(roundTripMs, headAt - start)
      fetchMs = Math.min(fetchMs, performance.now() - headAt)
    }
    const bytesPerSec = (1000 * history.length * tokenBytes) / fetchMs
    return { roundTripMs, bytesPerSec, bytesPerToken: tokenBytes }
  } catch {
    return undefined
  } finally {
    engine.release(handle)
    await kv.forget(user).catch(() => {})
  }
}
