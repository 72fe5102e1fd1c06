import {
  type KvCodecName,
  type OpenTier2,
  openTier2,
  type Tier2Event,
} from '../cache/open-tier2.js'
import { parseRedisUrl, type RedisTarget } from '../cache/redis-url.js'
import type { Engine } from '../model/engine/engine.js'
import type { Manifest } from '../model/manifest.js'

export type StoreOptions = {
  /** Where K/V and stored histories are, for all replicas; in this process when absent or ''. */
  readonly redisUrl?: string
  /** How K/V is written there; `fp16` when absent. */
  readonly redisCodec?: KvCodecName
  /** That K/V is read by. */
  readonly redisConnections?: number
  /** Seconds after its last write until K/V in Redis goes; a day when absent. */
  readonly kvTtlSec?: number
  readonly maxStoredEvents?: number
  /** Seconds after the last event until a user is forgotten. */
  readonly eventsTtlSec?: number
}

/** More gained nothing: one thread reads them all (bench/results/kv.md). */
const DEFAULT_CONNECTIONS = 1
const DEFAULT_KV_TTL_SEC = 86_400

/** @throws {RankError} CONFIG_INVALID for a URL that is none */
export function redisTarget({ redisUrl = '' }: StoreOptions): RedisTarget | undefined {
  return redisUrl === '' ? undefined : parseRedisUrl(redisUrl)
}

/** Where one model's K/V is kept behind this process. Redis may come later, or never. */
export async function openModelTier2(
  target: RedisTarget | undefined,
  options: StoreOptions,
  manifest: Manifest,
  engine: Engine,
  onEvent: (event: Tier2Event) => void,
): Promise<OpenTier2 | undefined> {
  if (target === undefined) return undefined
  const { redisCodec = 'fp16', redisConnections, kvTtlSec } = options
  return openTier2(
    {
      target,
      codec: redisCodec,
      connections: redisConnections ?? DEFAULT_CONNECTIONS,
      ttlMs: 1000 * (kvTtlSec ?? DEFAULT_KV_TTL_SEC),
    },
    manifest,
    engine,
    onEvent,
  )
}
