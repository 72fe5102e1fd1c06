// The two engines side by side on this CPU, in rounds that take turns. Called by bench/run-engines.ts.
import { execFileSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { randomHistory, randomRows } from '../falcon/calibrate.js'
import { createCapiEngine } from '../model/engine/capi/engine.js'
import type { Engine } from '../model/engine/engine.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import type { Bundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { callsPerSecond, median, type Spread, spreadOf, spreadText } from './stats.js'
import { QUERY_TIME } from './workload.js'

const ROUNDS = 31
/** Before an engine's round: the other one's threads still look out for work a while, then they sleep. */
const PAUSE_MS = 20
const CANDIDATES = [64, 256, 1024]
const APPENDED_TOKENS = 2
const IN_FLIGHT = 4
const MS_PER_ROUND = 600
/** Of one caller; its first call wakes the threads and does not count. Calls with pauses between them took 3 or 9 ms by chance. */
const MS_OF_CALLS = 250
const LEAST_CALLS = 2

export type EngineComparison = {
  readonly model: string
  readonly what: string
  /** Milliseconds, or requests per second where `isRate`. */
  readonly node: number
  readonly capi: number
  readonly isRate: boolean
  /** capi / node, of rounds that followed each other. */
  readonly ratio: Spread
}

export type EngineMemory = {
  readonly engine: string
  readonly workers: number
  /** Anonymous memory of a process that has loaded the bundle and ran every graph, MiB. */
  readonly anonymousMiB: number
}

export type EnginesResult = {
  readonly comparisons: readonly EngineComparison[]
  readonly memory: readonly EngineMemory[]
}

type Both = Readonly<Record<'node' | 'capi', Engine>>
/** Of one round each. */
type Samples = Readonly<Record<'node' | 'capi', number[]>>

export async function benchEngines(
  bundles: readonly Bundle[],
  log: (line: string) => void,
): Promise<EnginesResult> {
  const comparisons: EngineComparison[] = []
  for (const bundle of bundles) {
    comparisons.push(...(await latencies(bundle, log)), ...(await rates(bundle, log)))
  }
  const [largest] = bundles
  const memory: EngineMemory[] = []
  for (const workers of [1, availableParallelism()]) {
    for (const engine of ['node', 'capi']) {
      const script = fileURLToPath(new URL('./engine-memory.js', import.meta.url))
      const args = [script, engine, largest?.folder ?? '', String(workers)]
      const anonymousMiB = Number(execFileSync(process.execPath, args, { encoding: 'utf8' }))
      memory.push({ engine, workers, anonymousMiB })
      log(`${engine}, ${workers} workers: ${anonymousMiB} MiB anonymous`)
    }
  }
  return { comparisons, memory }
}

/** One call at a time with all cores. */
async function latencies(bundle: Bundle, log: (line: string) => void) {
  const threadsPerWorker = availableParallelism()
  const both = await openBoth(bundle, { workers: 1, threadsPerWorker })
  const { manifest } = bundle
  const { maxTokens } = manifest.config
  const random = createRandom(1)
  const history = randomHistory(manifest, maxTokens, random)
  const tasks = new Map<string, (engine: Engine) => Promise<unknown>>()
  const handles = new Map<Engine, Awaited<ReturnType<Engine['prefill']>>>()
  for (const engine of Object.values(both)) handles.set(engine, await engine.prefill(history))
  const handleOf = (engine: Engine) => {
    const handle = handles.get(engine)
    if (handle === undefined) throw new Error('no K/V')
    return handle
  }
  for (const m of CANDIDATES) {
    const rows = randomRows(manifest, m, random)
    tasks.set(`score, m = ${m}`, (engine) => engine.score(handleOf(engine), rows, QUERY_TIME))
  }
  const rows = randomRows(manifest, 256, random)
  const appends = new Map<Engine, () => Promise<void>>()
  for (const engine of Object.values(both)) appends.set(engine, await appender(engine, history))
  tasks.set('append of one event', async (engine) => appends.get(engine)?.())
  tasks.set('prefill', async (engine) => engine.release(await engine.prefill(history)))
  tasks.set('one pass, m = 256', (engine) =>
    engine.rank([{ history, candidates: rows, queryTime: QUERY_TIME }]),
  )
  const results: EngineComparison[] = []
  for (const [what, run] of tasks) {
    const times: Samples = { node: [], capi: [] }
    for (let round = -1; round < ROUNDS; round++) {
      for (const name of inTurn(round)) {
        await setTimeout(PAUSE_MS)
        const ms = await msPerCall(() => run(both[name]))
        if (round >= 0) times[name].push(ms)
      }
    }
    const result = comparisonOf(manifest.name, what, times, false)
    results.push(result)
    log(lineOf(result))
  }
  await closeBoth(both)
  return results
}

/** Each call appends to what the last one left, as a user's requests do; once all is there, to its first half again. */
async function appender(engine: Engine, history: HistoryTokens): Promise<() => Promise<void>> {
  const half = Math.floor(history.length / 2)
  const first = await engine.prefill(sliceTokens(history, 0, half))
  let last = first
  return async () => {
    const done = last
    const from = done.tokens + APPENDED_TOKENS > history.length ? first : done
    const rest = sliceTokens(history, from.tokens, from.tokens + APPENDED_TOKENS)
    last = await engine.prefill(rest, { handle: from, tokens: from.tokens })
    if (done !== first) engine.release(done)
  }
}

/** Median of calls one after the other. */
async function msPerCall(call: () => Promise<unknown>): Promise<number> {
  await call()
  const times: number[] = []
  const end = performance.now() + MS_OF_CALLS
  while (times.length < LEAST_CALLS || performance.now() < end) {
    const start = performance.now()
    await call()
    times.push(performance.now() - start)
  }
  return median(times)
}

/** Several callers, one thread per worker. */
async function rates(bundle: Bundle, log: (line: string) => void) {
  const both = await openBoth(bundle, { workers: availableParallelism(), threadsPerWorker: 1 })
  const { manifest } = bundle
  const random = createRandom(2)
  const history = randomHistory(manifest, manifest.config.maxTokens, random)
  const rows = randomRows(manifest, 256, random)
  const rate = async (engine: Engine) => {
    const handles = await Promise.all(
      Array.from({ length: IN_FLIGHT }, () => engine.prefill(history)),
    )
    const callers = handles.map((handle) => () => engine.score(handle, rows, QUERY_TIME))
    const perSecond = await callsPerSecond(callers, MS_PER_ROUND)
    for (const handle of handles) engine.release(handle)
    return perSecond
  }
  const found: Samples = { node: [], capi: [] }
  for (let round = -1; round < ROUNDS; round++) {
    for (const name of inTurn(round)) {
      await setTimeout(PAUSE_MS)
      const perSecond = await rate(both[name])
      if (round >= 0) found[name].push(perSecond)
    }
  }
  await closeBoth(both)
  const what = `score, m = 256, ${IN_FLIGHT} callers`
  const result = comparisonOf(manifest.name, what, found, true)
  log(lineOf(result))
  return [result]
}

/** Who comes second finds the other's memory in the caches: by turns. */
function inTurn(round: number): readonly ('node' | 'capi')[] {
  return round % 2 === 0 ? ['node', 'capi'] : ['capi', 'node']
}

function comparisonOf(
  model: string,
  what: string,
  { node, capi }: Samples,
  isRate: boolean,
): EngineComparison {
  const ratios = capi.map((value, round) => value / (node[round] ?? Number.NaN))
  return {
    ...{ model, what, node: median(node), capi: median(capi), isRate },
    ratio: spreadOf(ratios),
  }
}

function lineOf({ model, what, node, capi, isRate, ratio }: EngineComparison): string {
  const unit = isRate ? '/s' : 'ms'
  const each = `node ${node.toFixed(2)}, capi ${capi.toFixed(2)} ${unit}`
  return `${model} ${what}: ${each}, ratio ${spreadText(ratio)}`
}

async function openBoth(
  bundle: Bundle,
  threads: { readonly workers: number; readonly threadsPerWorker: number },
): Promise<Both> {
  return {
    node: await createNodeEngine({ bundle, ...threads }),
    capi: await createCapiEngine({ bundle, ...threads }),
  }
}

async function closeBoth({ node, capi }: Both): Promise<void> {
  await Promise.all([node.close(), capi.close()])
}
