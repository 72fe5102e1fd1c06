// Kernels beside the functions that they replace and beside PyTorch, on this CPU, in turns.
// Called by bench/run-kernels.ts.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { randomHistory, randomRows } from '../falcon/calibrate.js'
import { createCapiEngine } from '../model/engine/capi/engine.js'
import type { Engine } from '../model/engine/engine.js'
import { RankError } from '../model/errors.js'
import type { Bundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { sliceTokens } from '../model/tokens.js'
import { type OpCase, opCases, openCase } from './kernel-ops.js'
import { median } from './stats.js'
import { QUERY_TIME } from './workload.js'

const ROUNDS = 15
const PEER_ROUNDS = 2
/** The other side's threads still look out for work: a while, then they sleep. */
const PAUSE_MS = 20
const APPENDED_TOKENS = 2

export type PeerTimes = {
  readonly encodeMs: number
  readonly wholeMs: Readonly<Record<string, number>>
  readonly scoreMs: Readonly<Record<string, number>>
  readonly opMs: Readonly<Record<string, number>>
  readonly peakTflops: number
}
export type KernelPeer = {
  readonly torch: string
  readonly fp32: PeerTimes
  readonly bf16: PeerTimes
}

export type KernelTime = {
  readonly what: string
  readonly kernelsMs: number
  readonly functionsMs: number
}
/** `float32KvMs`: of kernels that round K/V and pack it to tiles in each run. */
export type CallTime = KernelTime & { readonly float32KvMs: number }
export type KernelsResult = {
  readonly library: string
  readonly threads: number
  readonly ops: readonly (KernelTime & { readonly flop: number })[]
  /** Calls of the engine at the paper's shape. */
  readonly calls: readonly CallTime[]
  /** K/V of the longest history, in bytes. */
  readonly kvBytes: Readonly<Record<Arm, number>>
  /** Largest difference of a logit between the two, and the largest logit. */
  readonly logits: { readonly difference: number; readonly largest: number }
  /** One per round; empty when no PyTorch was given. */
  readonly peers: readonly KernelPeer[]
}

type Run = () => Promise<unknown>
type Arm = 'kernels' | 'float32Kv' | 'functions'
type Runs<A extends Arm = Arm> = Readonly<Record<A, Run>>

/**
 * `folders`: of the libraries, and of the same ones without K/V in bf16; `python`: an interpreter that has PyTorch, or undefined.
 * @throws {RankError} ENGINE_UNAVAILABLE where no library fits this CPU
 */
export async function benchKernels(
  bundle: Bundle,
  folders: Readonly<Record<'kernels' | 'float32Kv', string>>,
  python: string | undefined,
  log: (line: string) => void,
): Promise<KernelsResult> {
  const threads = availableParallelism()
  const options = { bundle, workers: 1, threadsPerWorker: threads }
  const engines = {
    kernels: await createCapiEngine({ ...options, kernels: folders.kernels }),
    float32Kv: await createCapiEngine({ ...options, kernels: folders.float32Kv }),
    functions: await createCapiEngine(options),
  }
  try {
    const { library } = engines.kernels.stats().kernels ?? {}
    if (library === undefined) {
      throw new RankError('ENGINE_UNAVAILABLE', `no library of ${folders.kernels} fits this CPU`)
    }
    const peers: KernelPeer[] = []
    const askPeer = () => {
      if (python !== undefined) peers.push(runPeer(python, threads))
    }
    askPeer()
    const called = await benchCalls(engines, bundle, log)
    while (python !== undefined && peers.length < PEER_ROUNDS) askPeer()
    const ops = []
    for (const each of opCases()) ops.push(await benchOp(each, library, threads, log))
    return { library, threads, ops, ...called, peers }
  } finally {
    await Promise.all(Object.values(engines).map((engine) => engine.close()))
  }
}

async function benchCalls(
  engines: Readonly<Record<Arm, Engine>>,
  { manifest }: Bundle,
  log: (line: string) => void,
) {
  const { maxTokens } = manifest.config
  const random = createRandom(1)
  const history = randomHistory(manifest, maxTokens, random)
  const split = maxTokens - APPENDED_TOKENS
  const rest = sliceTokens(history, split, maxTokens)
  const rows = new Map([256, 1024].map((m) => [m, randomRows(manifest, m, random)]))
  const rowsOf = (m: number) => rows.get(m) ?? new Int32Array()
  const handles = {
    kernels: await engines.kernels.prefill(history),
    float32Kv: await engines.float32Kv.prefill(history),
    functions: await engines.functions.prefill(history),
  }
  const all = (call: (engine: Engine, name: Arm) => Promise<unknown>): Runs => ({
    kernels: () => call(engines.kernels, 'kernels'),
    float32Kv: () => call(engines.float32Kv, 'float32Kv'),
    functions: () => call(engines.functions, 'functions'),
  })
  const tasks = {
    ...Object.fromEntries(
      [...rows].map(([m, some]) => [
        `score, m = ${m.toLocaleString('en')}, from K/V`,
        all((engine, name) => engine.score(handles[name], some, QUERY_TIME)),
      ]),
    ),
    [`prefill, n = ${maxTokens.toLocaleString('en')}`]: all(async (engine) =>
      engine.release(await engine.prefill(history)),
    ),
    'append of one event': all(async (engine, name) =>
      engine.release(await engine.prefill(rest, { handle: handles[name], tokens: split })),
    ),
    'one pass, m = 256': all((engine) =>
      engine.rank([{ history, candidates: rowsOf(256), queryTime: QUERY_TIME }]),
    ),
  }
  const calls: CallTime[] = []
  for (const [what, runs] of Object.entries(tasks)) {
    const { kernels, float32Kv, functions } = await inTurns(what, runs, log)
    calls.push({ what, kernelsMs: kernels, float32KvMs: float32Kv, functionsMs: functions })
  }
  const scores = (name: Arm) => engines[name].score(handles[name], rowsOf(1024), QUERY_TIME)
  const exact = await scores('functions')
  const rounded = await scores('kernels')
  const difference = Math.max(...exact.map((x, i) => Math.abs(x - (rounded[i] ?? Number.NaN))))
  const largest = Math.max(...exact.map(Math.abs))
  const kvBytes = {
    kernels: handles.kernels.bytes,
    float32Kv: handles.float32Kv.bytes,
    functions: handles.functions.bytes,
  }
  return { calls, kvBytes, logits: { difference, largest } }
}

async function benchOp(
  each: OpCase,
  library: string,
  threads: number,
  log: (line: string) => void,
) {
  const folder = mkdtempSync(`${tmpdir()}/peregrine-op-`)
  try {
    const kernel = await openCase(folder, each, library, threads)
    const body = await openCase(folder, each, undefined, threads)
    const runs = { kernels: kernel.run, functions: body.run }
    const { kernels, functions } = await inTurns(each.name, runs, log)
    await kernel.close()
    await body.close()
    return { what: each.name, kernelsMs: kernels, functionsMs: functions, flop: each.flop }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** Medians in milliseconds. */
async function inTurns<A extends Arm>(
  what: string,
  runs: Runs<A>,
  log: (line: string) => void,
): Promise<Readonly<Record<A, number>>> {
  // The keys of a type are all there are: nobody else adds one.
  const arms = Object.keys(runs) as A[]
  const times = new Map(arms.map((arm): [A, number[]] => [arm, []]))
  for (let round = -1; round < ROUNDS; round++) {
    for (const [arm, own] of times) {
      await setTimeout(PAUSE_MS)
      const start = performance.now()
      await runs[arm]()
      if (round >= 0) own.push(performance.now() - start)
    }
  }
  const medians = arms.map((arm): [A, number] => [arm, median(times.get(arm) ?? [])])
  log(`${what}: ${medians.map(([arm, ms]) => `${arm} ${ms.toFixed(2)}`).join(', ')} ms`)
  return Object.fromEntries(medians) as Record<A, number>
}

function runPeer(python: string, threads: number): KernelPeer {
  const script = fileURLToPath(new URL('../../bench/peers/torch_cpu.py', import.meta.url))
  return JSON.parse(execFileSync(python, [script, String(threads)], { encoding: 'utf8' }))
}
