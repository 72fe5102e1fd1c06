// Bytes and exactness of K/V outside of the engine, by codec. Called by bench/run-kv.ts.
import { readdirSync, readFileSync } from 'node:fs'
import { digestChain } from '../cache/digest.js'
import { kvKey, kvVariant } from '../cache/key.js'
import { codecTokenBytes } from '../cache/open-tier2.js'
import { pageFields } from '../cache/page.js'
import type { RedisClient } from '../cache/redis.js'
import { writeStart } from '../cache/redis-kv.js'
import { randomHistory, randomRows } from '../falcon/calibrate.js'
import { createKvCodec } from '../model/engine/codec/codec.js'
import { KV_CODECS, type KvCodecName } from '../model/engine/codec/graphs.js'
import { createEngine } from '../model/engine/create.js'
import type { Engine } from '../model/engine/engine.js'
import { arrayWidths } from '../model/engine/kv-shape.js'
import type { Bundle, Manifest } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { buildCandidates, buildHistory } from '../model/sequence.js'
import type { HistoryTokens } from '../model/tokens.js'
import { parseRank } from '../server/parse.js'
import { openInThread, pageShape, storeUser } from './kv-user.js'
import type { BenchRedis } from './redis.js'
import { QUERY_TIME } from './workload.js'

const LIMITS = { maxHistoryEvents: 10_000, maxCandidates: 10_000, maxBatchRequests: 1 }
const RANDOM_REQUESTS = 8
const RANDOM_CANDIDATES = 256
const EVENT_TOKENS = 2

export type CodecBytes = {
  readonly model: string
  readonly codec: KvCodecName
  readonly tokens: number
  /** Of one token's K/V, as the shape says. */
  readonly tokenBytes: number
  /** Head and pages of all tokens, by HSTRLEN. */
  readonly storedBytes: number
  /** What Redis takes for the key, by MEMORY USAGE. */
  readonly memoryBytes: number
  /** An append of one event: pages written, their and the head's bytes, and what Redis received. */
  readonly append: {
    readonly pages: number
    readonly bytes: number
    readonly receivedBytes: number
  }
}

export type CodecError = {
  readonly model: string
  readonly codec: KvCodecName
  readonly requests: number
  readonly logits: number
  /** Of logits, against the same K/V as it was. */
  readonly maxDifference: number
  readonly meanDifference: number
  /** Largest magnitude of a logit. */
  readonly maxLogit: number
}

export type CodecsResult = {
  readonly bytes: readonly CodecBytes[]
  readonly errors: readonly CodecError[]
}

type Scored = {
  readonly history: HistoryTokens
  readonly rows: Int32Array
  readonly queryTime: number
}

export async function benchCodecs(
  paper: Bundle,
  demo: Bundle,
  requestFolder: string,
  redis: BenchRedis,
  log: (line: string) => void,
): Promise<CodecsResult> {
  const bytes: CodecBytes[] = []
  const errors: CodecError[] = []
  const client = await redis.connect('bench-codecs')
  for (const [bundle, requests] of [
    [paper, randomRequests(paper.manifest)],
    [demo, sampleRequests(demo, requestFolder)],
  ] as const) {
    const engine = await createEngine({ bundle, workers: 1 })
    try {
      for (const codec of KV_CODECS) {
        bytes.push(await bytesOf(codec, bundle, engine, redis, client))
        errors.push(await errorOf(codec, bundle, engine, requests))
        const { maxDifference, meanDifference } = errors.at(-1) ?? {}
        log(`${bundle.manifest.name} ${codec}: logits differ by ${maxDifference} at most`)
        log(`${bundle.manifest.name} ${codec}: and by ${meanDifference} on average`)
      }
    } finally {
      await engine.close()
    }
  }
  return { bytes, errors }
}

async function bytesOf(
  codec: KvCodecName,
  { manifest }: Bundle,
  engine: Engine,
  redis: BenchRedis,
  client: RedisClient,
): Promise<CodecBytes> {
  const { maxTokens } = manifest.config
  const { appendIsExact } = manifest
  const history = randomHistory(manifest, maxTokens, createRandom(5))
  const kv = await openInThread(redis, manifest, codec)
  try {
    const { user, head } = await storeUser(
      kv,
      engine,
      `bytes ${codec}`,
      history,
      maxTokens - EVENT_TOKENS,
    )
    const key = kvKey(kvVariant(manifest.version, codec), user)
    const chain = digestChain(history)
    const start = writeStart(head, chain, appendIsExact) ?? maxTokens
    const handle = await engine.prefill(history)
    const { layers } = await engine.exportKv(handle, start)
    engine.release(handle)
    const there = new Set(pageFields(head.chain, appendIsExact))
    const received = await receivedBytes(client)
    // The question itself is received too.
    const question = (await receivedBytes(client)) - received
    const before = await receivedBytes(client)
    await kv.write(user, chain, head, { tokens: maxTokens - start, layers })
    const after = await receivedBytes(client)
    const fields = pageFields(chain, appendIsExact)
    const sizeOf = (field: string) => client.hstrlen(key, field)
    const sizes = await Promise.all(fields.map(sizeOf))
    const written = sizes.filter((_, i) => !there.has(fields[i] ?? ''))
    const headBytes = await sizeOf('head')
    return {
      ...{ model: manifest.name, codec, tokens: maxTokens },
      tokenBytes: codecTokenBytes(pageShape(manifest, codec)),
      storedBytes: headBytes + sum(sizes),
      memoryBytes: (await client.memory('USAGE', key, 'SAMPLES', 0)) ?? Number.NaN,
      append: {
        pages: written.length,
        bytes: headBytes + sum(written),
        receivedBytes: after - before - question,
      },
    }
  } finally {
    await kv.close()
  }
}

async function receivedBytes(client: RedisClient): Promise<number> {
  const stats = await client.info('stats')
  return Number(/total_net_input_bytes:(\d+)/.exec(stats)?.[1])
}

/** The requests' logits on K/V that went through the codec, against those on the K/V itself. */
async function errorOf(
  name: KvCodecName,
  { manifest }: Bundle,
  engine: Engine,
  requests: readonly Scored[],
): Promise<CodecError> {
  const codec = createKvCodec(name, manifest.precision, arrayWidths(pageShape(manifest, name)))
  let maxDifference = 0
  let maxLogit = 0
  let total = 0
  let logits = 0
  for (const { history, rows, queryTime } of requests) {
    const handle = await engine.prefill(history)
    const pages = await engine.exportKv(handle)
    const arrays = pages.layers.flatMap(({ k, v }) => [k, v])
    await codec.decode(await codec.encode(arrays), arrays)
    const coded = await engine.importKv(pages)
    const expected = await engine.score(handle, rows, queryTime)
    const got = await engine.score(coded, rows, queryTime)
    engine.release(handle)
    engine.release(coded)
    for (const [i, logit] of expected.entries()) {
      const difference = Math.abs((got[i] ?? Number.NaN) - logit)
      maxDifference = Math.max(maxDifference, difference)
      maxLogit = Math.max(maxLogit, Math.abs(logit))
      total += difference
      logits++
    }
  }
  await codec.close()
  const counts = { requests: requests.length, logits }
  const differences = { maxDifference, meanDifference: total / logits, maxLogit }
  return { model: manifest.name, codec: name, ...counts, ...differences }
}

function randomRequests(manifest: Manifest): Scored[] {
  const random = createRandom(9)
  return Array.from({ length: RANDOM_REQUESTS }, () => ({
    history: randomHistory(manifest, manifest.config.maxTokens, random),
    rows: randomRows(manifest, RANDOM_CANDIDATES, random),
    queryTime: QUERY_TIME,
  }))
}

/** Those without events have K/V too, of the user's own features. */
function sampleRequests({ vocabulary }: Bundle, folder: string): Scored[] {
  return readdirSync(folder)
    .sort()
    .map((file) => {
      const body: unknown = JSON.parse(readFileSync(`${folder}/${file}`, 'utf8'))
      const { input } = parseRank(body, LIMITS, QUERY_TIME)
      const history = buildHistory(input, vocabulary)
      const { rows } = buildCandidates(input, vocabulary, history)
      return { history: history.tokens, rows, queryTime: input.time }
    })
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
