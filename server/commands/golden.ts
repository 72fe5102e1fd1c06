import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { getFloat16 } from '@petamoriken/float16'
import { planMicroBatches } from '../../falcon/plan.js'
import { createReference } from '../../falcon/reference.js'
import { largestDifference } from '../../falcon/verify.js'
import { fromBf16 } from '../../model/bf16.js'
import type { KvPrecision } from '../../model/engine/codec/graphs.js'
import { createEngine } from '../../model/engine/create.js'
import type { Engine, KvPages } from '../../model/engine/engine.js'
import { openWeights } from '../../model/export/variants.js'
import { type Bundle, openBundle, type Precision } from '../../model/manifest.js'
import { sliceTokens } from '../../model/tokens.js'
import { TOLERANCE } from '../../model/vectors.js'
import { exportBundle, needFolder, parsePrecision } from './export.js'
import { engineFlag, positive, providerFlag } from './flags.js'
import { type Case, readCases } from './golden/cases.js'

export const GOLDEN_HELP = `peregrine golden DIR [--precision fp32|fp16] [--provider cpu|cuda] [--engine auto|capi|node]
                     [--kernels off|auto|DIR] [--tolerance X]
    exports a golden case, runs its requests through every route of the engine, compares with expected.safetensors`

/** Exit code 0 when every difference is within the tolerance, else 1. */
export async function goldenCommand(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      precision: { type: 'string', default: 'fp32' },
      provider: { type: 'string', default: 'cpu' },
      engine: { type: 'string', default: 'auto' },
      kernels: { type: 'string', default: 'off' },
      tolerance: { type: 'string' },
    },
  })
  const folder = needFolder(positionals[0], `golden needs the folder of a case\n${GOLDEN_HELP}`)
  const precision = parsePrecision(values.precision)
  const provider = providerFlag(values.provider)
  const choice = engineFlag(values.engine)
  const { kernels } = values
  const asked =
    values.tolerance === undefined ? undefined : positive('--tolerance', values.tolerance)
  const out = mkdtempSync(`${tmpdir()}/peregrine-golden-`)
  try {
    exportBundle(folder, `${out}/bundle`, precision)
    const bundle = openBundle(`${out}/bundle`)
    const cases = readCases(folder, bundle)
    const report = (line: string) => process.stdout.write(`${line}\n`)
    let worst = compareOracle(folder, bundle, cases, report)
    const engine = await createEngine({ bundle, provider, engine: choice, kernels, workers: 1 })
    const tolerance = asked ?? TOLERANCE[engine.stats().kernels?.arithmetic ?? precision]
    try {
      worst = Math.max(worst, await compareEngine(engine, cases, precision, report))
    } finally {
      await engine.close()
    }
    const passed = worst <= tolerance
    report(
      `${passed ? 'PASS' : 'FAIL'} ${folder}: largest difference ${worst.toExponential(2)}, tolerance ${tolerance}`,
    )
    return passed ? 0 : 1
  } finally {
    rmSync(out, { recursive: true, force: true })
  }
}

function compareOracle(
  folder: string,
  bundle: Bundle,
  cases: Case[],
  report: (line: string) => void,
) {
  const { config } = bundle.manifest
  const source = openWeights(`${folder}/weights.safetensors`, config)
  try {
    const reference = createReference(source, config)
    const differences = cases.map(({ history, candidates, queryTime, logits }) =>
      largestDifference(reference(history, candidates, queryTime).logits, logits),
    )
    const worst = Math.max(...differences)
    report(
      `oracle float64: ${cases.length} requests, largest logit difference ${worst.toExponential(2)}`,
    )
    return worst
  } finally {
    source.close()
  }
}

/** Every route to the logits, and K/V itself. */
export async function compareEngine(
  engine: Engine,
  cases: readonly Case[],
  precision: Precision,
  report: (line: string) => void,
): Promise<number> {
  let worst = 0
  const batched = await engine.rank(cases)
  for (const [i, request] of cases.entries()) {
    const { history, stated, logits, m } = request
    const whole = await engine.prefill(history)
    const half = await engine.prefill(sliceTokens(history, 0, history.length >> 1))
    const appended = await engine.prefill(sliceTokens(history, half.tokens, history.length), {
      handle: half,
      tokens: half.tokens,
    })
    const withAll = stated === history ? whole : await engine.prefill(stated)
    const differences = {
      score: largestDifference(await scoreIn(engine, whole, request, m), logits),
      'b=1': largestDifference(await scoreIn(engine, whole, request, 1), logits),
      'b=4': largestDifference(await scoreIn(engine, whole, request, 4), logits),
      append: largestDifference(await scoreIn(engine, appended, request, m), logits),
      rank: largestDifference(batched[i] ?? [], logits),
      kv: kvDifference(await engine.exportKv(withAll), request, engine.kvPrecision),
    }
    for (const handle of new Set([whole, half, appended, withAll])) engine.release(handle)
    worst = Math.max(worst, ...Object.values(differences))
    const list = Object.entries(differences).map(([name, x]) => `${name} ${x.toExponential(1)}`)
    report(
      `${engine.name} ${precision} ${request.name} (${history.length} + ${m}): ${list.join(', ')}`,
    )
  }
  return worst
}

/** Logits of all candidates, in micro-batches of at most b. */
async function scoreIn(
  engine: Engine,
  handle: Awaited<ReturnType<Engine['prefill']>>,
  { candidates, queryTime, m }: Case,
  b: number,
): Promise<number[]> {
  const slots = candidates.length / m
  const logits: number[] = []
  for (const { start, end } of planMicroBatches(m, b)) {
    const batch = candidates.subarray(start * slots, end * slots)
    logits.push(...(await engine.score(handle, batch, queryTime)))
  }
  return logits
}

function kvDifference(pages: KvPages, expected: Case, precision: KvPrecision): number {
  return Math.max(
    ...pages.layers.flatMap(({ k, v }, i) => [
      largestDifference(decode(k, precision), expected.k[i] ?? []),
      largestDifference(decode(v, precision), expected.v[i] ?? []),
    ]),
  )
}

function decode(bytes: Uint8Array, precision: KvPrecision): Float32Array {
  if (precision === 'bf16') return decode(fromBf16(bytes), 'fp32')
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const width = precision === 'fp16' ? 2 : 4
  return Float32Array.from({ length: bytes.length / width }, (_, i) =>
    width === 2 ? getFloat16(view, i * 2, true) : view.getFloat32(i * 4, true),
  )
}
