// What the size of an embedding table costs. Called by bench/run-tables.ts.
import { execFileSync, spawn } from 'node:child_process'
import { statSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { Ranker } from '../../falcon/types.js'
import { openBundle } from '../../model/manifest.js'
import { createRandom } from '../../model/random.js'
import { quantile } from '../stats.js'
import { createLatencyRanker } from '../workload.js'
import { ID_FILE, requestOver, writeIds } from './model.js'

const CANDIDATES = 2048
const ROUNDS = 60
/** Requests until most of a table's pages are in the process's map: before, a row costs a fault. */
const WARM_UP = 60
const FIRST = 10
const MICRO_BATCH = 512

/** The first is the baseline: a table that fits into the processor's caches. */
export const CASES = [
  { items: 10_000, table: 'fp32' },
  { items: 1_000_000, table: 'fp16' },
  { items: 10_000_000, table: 'fp16' },
  { items: 10_000_000, table: 'int8' },
] as const

/** Ids by the index, together as a request's candidates or one by one; by a Map. */
const LOOK_UPS = ['index', 'single', 'map'] as const
export type LookUpKind = (typeof LOOK_UPS)[number]

export type TableCase = (typeof CASES)[number]
export type Exported = {
  readonly seconds: number
  readonly peakMiB: number
  readonly tableMiB: number
  readonly idsMiB: number
}
export type LookUp = {
  readonly items: number
  readonly kind: LookUpKind
  readonly openMs: number
  readonly p10Ms: number
  readonly p50Ms: number
  readonly unknownP50Ms: number
  /** Resident, and what of that is this process's alone. */
  readonly bytesPerId: number
  readonly ownBytesPerId: number
}
export type Memory = { readonly rss: number; readonly pss: number; readonly anonymous: number }
export type Served = {
  readonly engine: 'capi' | 'node'
  readonly startMs: number
  readonly one: Memory & { readonly table: FileMemory }
  /** Each of two processes. */
  readonly two: readonly (Memory & { readonly table: FileMemory })[]
}
type FileMemory = { readonly rss: number; readonly pss: number; readonly copied: number }

export type TablesResult = {
  readonly exports: readonly (TableCase & Exported)[]
  readonly lookUps: readonly LookUp[]
  readonly served: readonly (TableCase & Served)[]
  readonly ranked: readonly (TableCase & {
    readonly firstMs: number
    readonly p50Ms: number
    readonly p90Ms: number
  })[]
}

export async function benchTables(
  folder: string,
  most: number,
  log: (line: string) => void,
): Promise<TablesResult> {
  const cases = CASES.filter(({ items }) => items <= most)
  const exports = cases.map((each) => {
    const { items, table } = each
    writeIds(`${folder}/${ID_FILE}`, items)
    const probed: { seconds: number; peakMiB: number } = probe('export', folder, items, table)
    const mib = (file: string) => statSync(`${bundleOf(folder, each)}/${file}`).size / 2 ** 20
    const tableMiB = mib('weights.bin')
    const idsMiB = mib(`${ID_FILE}.index`)
    log(`${items} ${table}: exported in ${probed.seconds.toFixed(1)} s, ${probed.peakMiB} MiB`)
    return { ...each, ...probed, tableMiB, idsMiB }
  })
  const sizes = [...new Map(cases.map((each) => [each.items, each]))]
  const lookUps = sizes.flatMap(([items, each]) =>
    LOOK_UPS.map((kind): LookUp => {
      const index = `${bundleOf(folder, each)}/${ID_FILE}.index`
      const found: Omit<LookUp, 'items' | 'kind'> = probe('lookup', kind, index, items)
      log(`${items} ${kind}: ${JSON.stringify(found)}`)
      return { items, kind, ...found }
    }),
  )
  const served: (TableCase & Served)[] = []
  for (const each of cases) {
    for (const engine of ['capi', 'node'] as const) {
      served.push({ ...each, ...(await serve(engine, bundleOf(folder, each), each.items)) })
      log(JSON.stringify(served.at(-1)))
    }
  }
  return { exports, lookUps, served, ranked: await rank(folder, cases, log) }
}

function bundleOf(folder: string, { items, table }: TableCase): string {
  return `${folder}/${items}-${table}`
}

function script(name: string): string {
  return fileURLToPath(new URL(`./${name}-probe.js`, import.meta.url))
}

function probe<T>(name: string, ...args: readonly (string | number)[]): T {
  // A Map of 10^7 ids is larger than Node's heap by itself.
  const flags = ['--expose-gc', '--max-old-space-size=8192']
  const given = [...flags, script(name), ...args.map(String)]
  return JSON.parse(execFileSync(process.execPath, given, { encoding: 'utf8' }))
}

/** A process that answers lines with lines of JSON. */
async function server(engine: string, bundle: string, items: number) {
  const child = spawn(process.execPath, [script('serve'), engine, bundle, String(items)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const next = async () => {
    const { value, done } = await lines.next()
    if (done) throw new Error(`${engine} on ${bundle} ended`)
    return JSON.parse(value)
  }
  const { startMs } = await next()
  return {
    startMs: Number(startMs),
    memory(): Promise<Served['one']> {
      child.stdin.write('memory\n')
      return next()
    },
    end: () =>
      new Promise<void>((resolve) => {
        child.once('exit', () => resolve())
        child.stdin.end()
      }),
  }
}

async function serve(engine: 'capi' | 'node', bundle: string, items: number): Promise<Served> {
  const first = await server(engine, bundle, items)
  const one = await first.memory()
  const second = await server(engine, bundle, items)
  const two = [await first.memory(), await second.memory()]
  await Promise.all([first.end(), second.end()])
  return { engine, startMs: first.startMs, one, two }
}

/** One thread each, in turns, so that whatever else the machine does meets all of them. */
async function rank(folder: string, cases: readonly TableCase[], log: (line: string) => void) {
  const rankers: Ranker[] = []
  try {
    for (const each of cases) {
      const bundle = openBundle(bundleOf(folder, each), { filesAreChecked: true })
      rankers.push(await createLatencyRanker(bundle, 1, MICRO_BATCH))
    }
    const times = cases.map((): number[] => [])
    const random = createRandom(9)
    for (let round = 0; round < WARM_UP + ROUNDS; round++) {
      for (const [i, { items }] of cases.entries()) {
        const request = requestOver(items, `user-${round}`, CANDIDATES, random)
        const start = performance.now()
        await rankers[i]?.rank(request, { topK: 100 })
        times[i]?.push(performance.now() - start)
      }
    }
    return cases.map((each, i) => {
      const own = times[i] ?? []
      const warm = own.slice(WARM_UP)
      const ofWarm = { p50Ms: quantile(warm, 0.5), p90Ms: quantile(warm, 0.9) }
      const result = { ...each, firstMs: quantile(own.slice(0, FIRST), 0.5), ...ofWarm }
      log(JSON.stringify(result))
      return result
    })
  } finally {
    for (const ranker of rankers) await ranker.close()
  }
}
