// node dist/bench/gpu/run.js --out DIR [--bundles DIR] [--peer DIR --python python3] [--only a,b] [--quick]
//   [--kernels DIR: the same with kernel libraries, as more engines]
// Runs on a machine with a CUDA GPU and no network; writes gpu.json. bench/gpu/report.js makes the page.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { randomConfig } from '../../model/export/random.js'
import { type Bundle, openBundle } from '../../model/manifest.js'
import { exportBundle } from '../../server/commands/export.js'
import { describeMachine } from '../machine.js'
import { benchEquality, benchGrowth } from './checks.js'
import { benchGpuHttp } from './http.js'
import { benchLatency, ENGINES, kernelEngines } from './latency.js'
import { profile } from './profile.js'
import type { GpuResult } from './result.js'
import { exportShape, SHAPES, stuConfig, withoutBias } from './shapes.js'

const SECTIONS = ['latency', 'equality', 'growth', 'http', 'profile', 'peer']
const HTTP_FLAGS = ['--provider', 'cuda', '--engine', 'capi', '--kv-bytes', String(16 * 2 ** 30)]
const PEER_BUDGET_SEC = 270

// Before CUDA starts: engine node has no other way to keep float32 from TF32.
process.env.NVIDIA_TF32_OVERRIDE = '0'

const { values } = parseArgs({
  options: {
    out: { type: 'string', default: 'bench/results' },
    bundles: { type: 'string', default: 'bundles/bench' },
    python: { type: 'string', default: 'python3' },
    peer: { type: 'string' },
    only: { type: 'string', default: SECTIONS.join() },
    quick: { type: 'boolean', default: false },
    kernels: { type: 'string' },
  },
})
const { out, bundles, python, peer, kernels } = values
const withKernels = kernels === undefined ? {} : kernelEngines(kernels)
const wanted = new Set(values.only.split(','))
const log = (line: string) => process.stderr.write(`${line}\n`)
mkdirSync(out, { recursive: true })
const file = `${out}/gpu.json`
// Sections may come from several calls: a host may not be free for the whole.
const before: Partial<GpuResult> = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {}
const result: { -readonly [K in keyof GpuResult]?: GpuResult[K] } = before

type Mutable<T> = T extends readonly (infer E)[] ? E[] : T

/** A fault in one section loses no other. */
async function section(name: string, work: () => Promise<void> | void): Promise<void> {
  if (!wanted.has(name)) return
  log(`== ${name}`)
  const start = performance.now()
  const { commit = 'unknown' } = result.machine ?? {}
  result.commits = { ...result.commits, [name]: commit }
  try {
    await work()
  } catch (error) {
    log(`${name} failed: ${error instanceof Error ? error.stack : String(error)}`)
    process.exitCode = 1
  }
  log(`${name}: ${((performance.now() - start) / 1000).toFixed(0)} s`)
  write()
}

const write = () => writeFileSync(file, `${JSON.stringify(result, null, 2)}\n`)
const folderOf = (config: { readonly name?: string }, precision: string) =>
  `${bundles}/${config.name}-${precision}`
function bundleOf(config: ReturnType<typeof randomConfig>, precision: 'fp16' | 'fp32') {
  const folder = folderOf(config, precision)
  if (!existsSync(`${folder}/manifest.json`)) {
    log(`exporting ${folder}`)
    exportShape(config, bundles, precision)
  }
  return openBundle(folder)
}

result.machine = { ...describeMachine(), ...describeGpu() }
const [paper = SHAPES[0]] = SHAPES
if (paper === undefined) throw new Error('no shapes')

await section('latency', async () => {
  const msPerFigure = values.quick ? 400 : 500
  const latency: Mutable<GpuResult['latency']> = []
  result.latency = latency
  const measure = async (shape: string, bundle: Bundle, m: readonly number[], names: string[]) => {
    const model = bundle.manifest.name
    log(model)
    const engines = []
    for (const [name, create] of Object.entries({ ...ENGINES, ...withKernels })) {
      if (!names.includes(name) && !(name in withKernels)) continue
      engines.push(await benchLatency(bundle, [name, create], m, msPerFigure, log))
    }
    latency.push({ shape, model, engines })
    write()
  }
  const all = Object.keys(ENGINES)
  const usual = all.filter((name) => !['node x 4', 'capi, table on the host'].includes(name))
  if (values.quick) {
    for (const shape of SHAPES.filter(({ name }) => name !== 'mlperf')) {
      const names = shape === paper ? all : usual
      const m = shape.candidates.filter((count) => count <= 1024)
      await measure(shape.name, bundleOf(stuConfig(shape), 'fp16'), m, names)
    }
    return
  }
  for (const shape of SHAPES) {
    const names = shape === paper ? all : usual
    await measure(shape.name, bundleOf(stuConfig(shape), 'fp16'), shape.candidates, names)
  }
  await measure('paper, rab', bundleOf(randomConfig(paper), 'fp16'), paper.candidates, usual)
  if (kernels !== undefined) {
    const bundle = bundleOf(withoutBias(paper), 'fp16')
    await measure('paper, no rab', bundle, paper.candidates, [])
  }
  const demo = `${bundles}/demo-fp16`
  if (!existsSync(`${demo}/manifest.json`)) exportBundle('demo/kuairand', demo, 'fp16')
  await measure('demo', openBundle(demo), [100, 500], usual)
})
await section('equality', async () => {
  const config = randomConfig(paper)
  const exact = bundleOf(config, 'fp32')
  result.equality = {
    fp16: await benchEquality(bundleOf(config, 'fp16'), exact, withKernels, log),
    fp32: await benchEquality(exact, exact, {}, log),
  }
})
await section('growth', async () => {
  const bundle = bundleOf(randomConfig(paper), 'fp16')
  result.growth = await benchGrowth(bundle, undefined, log)
  if (kernels !== undefined) result.growthWithKernels = await benchGrowth(bundle, kernels, log)
})
await section('http', async () => {
  const { folder } = bundleOf(randomConfig(paper), 'fp16')
  result.http = await benchGpuHttp(folder, [...HTTP_FLAGS, '--kernels', 'off'], log)
  if (kernels === undefined) return
  result.httpWithKernels = await benchGpuHttp(folder, [...HTTP_FLAGS, '--kernels', kernels], log)
})
await section('profile', () => {
  const profiles = []
  for (const config of [stuConfig(paper), randomConfig(paper)]) {
    const { folder } = bundleOf(config, 'fp16')
    for (const graph of ['hit', 'prefill', 'rank'] as const) {
      profiles.push({ model: config.name ?? '', ...profile(folder, graph, 1024) })
      if (kernels === undefined) continue
      const found = profile(folder, graph, 1024, kernels)
      profiles.push({ model: `${config.name}, kernels`, ...found })
    }
  }
  result.profiles = profiles
})
await section('peer', () => {
  if (peer === undefined) return
  const script = fileURLToPath(new URL('../../../bench/gpu/peers/meta_triton.py', import.meta.url))
  const json = `${out}/meta_triton.json`
  const args = [script, peer, json, '--budget-s', String(PEER_BUDGET_SEC)]
  if (values.quick) args.push('--quick')
  const run = spawnSync(python, args, { stdio: ['ignore', 'inherit', 'inherit'] })
  if (run.status !== 0) log(`meta_triton.py ended with ${run.status}`)
  result.peer = JSON.parse(readFileSync(json, 'utf8'))
})

function describeGpu() {
  const query = ['--query-gpu=name,driver_version', '--format=csv,noheader']
  const [gpu = '', driver = ''] = execFileSync('nvidia-smi', query, { encoding: 'utf8' })
    .trim()
    .split(', ')
  return { gpu, driver }
}
