// That fast is also right: the same scores from every engine, route and batch, and no growth of the
// GPU's memory. Called by bench/gpu/run.ts.
import { execFileSync } from 'node:child_process'
import { randomHistory, randomRows } from '../../falcon/calibrate.js'
import { largestDifference } from '../../falcon/verify.js'
import { createCapiEngine } from '../../model/engine/capi/engine.js'
import type { Engine, KvHandle } from '../../model/engine/engine.js'
import { KV_ELEMENT_BYTES } from '../../model/engine/kv-shape.js'
import type { Bundle } from '../../model/manifest.js'
import { createRandom } from '../../model/random.js'
import { sliceTokens } from '../../model/tokens.js'
import { QUERY_TIME } from '../workload.js'
import { type CreateEngine, ENGINES } from './latency.js'

const COMPARED_CANDIDATES = 256
const MIXED_REQUESTS = 10_000
const MIXED_USERS = 300
const MIXED_IN_FLIGHT = 16

/** Largest difference of a logit, and that over the largest logit. */
export type Difference = {
  readonly what: string
  readonly absolute: number
  readonly relative: number
}

/**
 * Logits of one request of full length by every way there is, against float32 on the CPU. `exact` is
 * the float32 bundle of the same weights, `more` engines beside those that are always compared.
 */
export async function benchEquality(
  bundle: Bundle,
  exact: Bundle,
  more: Readonly<Record<string, CreateEngine>>,
  log: (line: string) => void,
): Promise<Difference[]> {
  const { manifest } = bundle
  const { maxTokens } = manifest.config
  const random = createRandom(2)
  const history = randomHistory(manifest, maxTokens, random)
  const candidates = randomRows(manifest, COMPARED_CANDIDATES, random)
  const user = { history, candidates, queryTime: QUERY_TIME }
  const others = [maxTokens >> 1, 17].map((length) => ({
    ...user,
    history: randomHistory(manifest, length, random),
  }))
  const cpu = await createCapiEngine({ bundle: exact, threadsPerWorker: 8 })
  const handle = await cpu.prefill(history)
  const expected = await cpu.score(handle, candidates, QUERY_TIME)
  await cpu.close()
  const largest = expected.reduce((most, logit) => Math.max(most, Math.abs(logit)), 0)
  const differences: Difference[] = []
  const compare = (what: string, got: Float32Array) => {
    const absolute = largestDifference(got, expected)
    differences.push({ what, absolute, relative: absolute / largest })
    log(`${what}: ${absolute.toExponential(2)} of ${largest.toFixed(3)}`)
  }
  for (const [name, create] of Object.entries({ ...ENGINES, ...more })) {
    if (name === 'node x 4') continue
    const engine = await create(bundle)
    await engine.warmUp({ historyTokens: [maxTokens, 2], candidates: [COMPARED_CANDIDATES] })
    const whole = await engine.prefill(history)
    compare(`${name}: K/V, score`, await engine.score(whole, candidates, QUERY_TIME))
    const split = maxTokens - 37
    const past = await engine.prefill(sliceTokens(history, 0, split))
    const rest = sliceTokens(history, split, maxTokens)
    const appended = await engine.prefill(rest, { handle: past, tokens: split })
    compare(`${name}: appended K/V, score`, await engine.score(appended, candidates, QUERY_TIME))
    const [alone] = await engine.rank([user])
    compare(`${name}: one pass`, alone ?? new Float32Array(0))
    const [, middle] = await engine.rank([others[0] ?? user, user, others[1] ?? user])
    compare(`${name}: one pass among shorter users`, middle ?? new Float32Array(0))
    for (const each of [whole, past, appended]) engine.release(each)
    await engine.close()
  }
  return differences
}

export type Growth = {
  readonly requests: number
  /** MiB that the driver says are in use, after each tenth of the requests. */
  readonly usedMiB: readonly number[]
  readonly spills: number
  readonly restores: number
}

/** Mixed prefills, appends, scores, one-pass runs and releases under a small K/V budget. */
export async function benchGrowth(
  bundle: Bundle,
  kernels: string | undefined,
  log: (line: string) => void,
): Promise<Growth> {
  const { manifest } = bundle
  const { maxTokens, layers, heads, dqk, dv } = manifest.config
  const random = createRandom(3)
  const below = (n: number) => Math.floor(random() * n)
  const elementBytes = KV_ELEMENT_BYTES[manifest.precision]
  const userBytes = maxTokens * layers * heads * (dqk + dv) * elementBytes
  const engine = await createCapiEngine({
    bundle,
    provider: 'cuda',
    workers: 4,
    ...(kernels === undefined ? {} : { kernels }),
    // A third of the users at full length: the rest goes to the host and back.
    gpuKvBytes: (MIXED_USERS / 3) * userBytes,
  })
  try {
    await engine.warmUp({ historyTokens: [maxTokens, 2], candidates: [1024] })
    const held = new Map<number, KvHandle>()
    // Another request of the same user may have stored one meanwhile.
    const keep = (who: number, handle: KvHandle) => {
      const other = held.get(who)
      if (other !== undefined) engine.release(other)
      held.set(who, handle)
    }
    const one = async () => {
      const who = below(MIXED_USERS)
      const rows = randomRows(manifest, 1 + below(1024), random)
      const known = held.get(who)
      held.delete(who)
      if (known === undefined || below(10) === 0) {
        if (known !== undefined) engine.release(known)
        const history = randomHistory(manifest, 2 + below(maxTokens - 2), random)
        if (below(4) === 0) {
          await engine.rank([{ history, candidates: rows, queryTime: QUERY_TIME }])
          return
        }
        keep(who, await scored(engine, await engine.prefill(history), rows))
        return
      }
      const more = Math.min(2 * below(8), maxTokens - known.tokens)
      const rest = randomHistory(manifest, more, random)
      const grown = await engine.prefill(rest, { handle: known, tokens: known.tokens })
      engine.release(known)
      keep(who, await scored(engine, grown, rows))
    }
    let started = 0
    const used: number[] = []
    const caller = async () => {
      while (started < MIXED_REQUESTS) {
        started++
        if (started % (MIXED_REQUESTS / 10) === 0) used.push(usedMiB())
        await one()
      }
    }
    await Promise.all(Array.from({ length: MIXED_IN_FLIGHT }, caller))
    const { spills = 0, restores = 0 } = engine.stats().kv ?? {}
    log(
      `${MIXED_REQUESTS} mixed requests: ${used.join(', ')} MiB; ${spills} spills, ${restores} restores`,
    )
    return { requests: MIXED_REQUESTS, usedMiB: used, spills, restores }
  } finally {
    await engine.close()
  }
}

async function scored(engine: Engine, handle: KvHandle, rows: Int32Array): Promise<KvHandle> {
  await engine.score(handle, rows, QUERY_TIME)
  return handle
}

export function usedMiB(): number {
  const query = ['--query-gpu=memory.used', '--format=csv,noheader,nounits']
  return Number(execFileSync('nvidia-smi', query, { encoding: 'utf8' }).split('\n')[0])
}
