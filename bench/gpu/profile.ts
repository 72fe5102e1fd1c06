// Where a graph's time goes on the GPU, kernel by kernel, by Nsight Compute. Called by bench/gpu/run.ts.
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { parse } from 'csv-parse/sync'

/** Runs of the profiled graph; the kernels of all are added up. */
export const PROFILED_RUNS = 3

export type Kernel = {
  readonly name: string
  /** Launches, microseconds and bytes of GPU memory of one run. */
  readonly launches: number
  readonly us: number
  readonly bytes: number
}

export type Profile = {
  readonly graph: string
  readonly m: number
  readonly us: number
  readonly launches: number
  readonly kernels: readonly Kernel[]
}

const UNITS = new Map([
  ['ns', 1e-3],
  ['nsecond', 1e-3],
  ['us', 1],
  ['usecond', 1],
  ['ms', 1e3],
  ['msecond', 1e3],
  ['byte', 1],
  ['Kbyte', 1e3],
  ['Mbyte', 1e6],
  ['Gbyte', 1e9],
])

/**
 * `prefill`, one-pass `rank`, or `hit`: a prefill and then a score.
 * @throws when ncu is not there or may not read the counters
 */
export function profile(
  folder: string,
  graph: 'prefill' | 'hit' | 'rank',
  m: number,
  kernelFolder?: string,
): Profile {
  const script = fileURLToPath(new URL('./profile-run.js', import.meta.url))
  const metrics = 'gpu__time_duration.sum,dram__bytes.sum'
  const options = ['--csv', '--metrics', metrics, '--clock-control', 'none']
  const args = [...options, process.execPath, script, folder, graph, String(m)]
  if (kernelFolder !== undefined) args.push(kernelFolder)
  const output = execFileSync('ncu', args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
  const table = output.slice(output.indexOf('"ID"'))
  const rows: Record<string, string>[] = parse(table, { columns: true, relax_column_count: true })
  const kernels = new Map<string, { launches: number; us: number; bytes: number }>()
  for (const row of rows) {
    const name = shortName(row['Kernel Name'] ?? '')
    const value = Number((row['Metric Value'] ?? '').replaceAll(',', ''))
    const amount = value * (UNITS.get(row['Metric Unit'] ?? '') ?? Number.NaN)
    const sum = kernels.get(name) ?? { launches: 0, us: 0, bytes: 0 }
    kernels.set(name, sum)
    if (row['Metric Name'] === 'gpu__time_duration.sum') {
      sum.launches++
      sum.us += amount
    } else {
      sum.bytes += amount
    }
  }
  const perRun = [...kernels]
    .map(([name, { launches, us, bytes }]) => ({
      name,
      launches: launches / PROFILED_RUNS,
      us: us / PROFILED_RUNS,
      bytes: bytes / PROFILED_RUNS,
    }))
    .sort((a, b) => b.us - a.us)
  const total = (of: (kernel: Kernel) => number) => perRun.reduce((sum, k) => sum + of(k), 0)
  return { graph, m, us: total((k) => k.us), launches: total((k) => k.launches), kernels: perRun }
}

/** A C++ signature without its namespaces, template arguments and parameters. */
export function shortName(signature: string): string {
  const named = signature.replaceAll(/(<unnamed>|\(anonymous namespace\))::/g, '')
  const withoutArguments = named.replace(/\(.*$/s, '').replace(/<.*$/s, '')
  return (
    withoutArguments
      .replace(/^void /, '')
      .split('::')
      .at(-1)
      ?.trim() ?? signature
  )
}
