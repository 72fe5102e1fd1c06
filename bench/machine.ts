import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { arch, availableParallelism, cpus, loadavg, platform, totalmem } from 'node:os'
import { onnxRuntimeVersion } from '../model/engine/version.js'

/** Where and on what a result was measured; written on every result. */
export type Machine = {
  readonly cpu: string
  readonly cores: number
  readonly memoryGiB: number
  readonly platform: string
  readonly node: string
  readonly onnxruntime: string
  readonly commit: string
  readonly date: string
  /** One-minute load before the run: above 0.5 someone else used the machine. */
  readonly loadBefore: number
}

export function describeMachine(): Machine {
  return {
    cpu: `${cpus()[0]?.model ?? 'unknown'}${features()}`,
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    platform: `${platform()} ${arch()}`,
    node: process.version,
    onnxruntime: onnxRuntimeVersion(),
    commit: commit(),
    date: new Date().toISOString().slice(0, 10),
    loadBefore: Number((loadavg()[0] ?? 0).toFixed(2)),
  }
}

/** Which of the wide instruction sets the CPU has: they decide the matrix products. */
function features(): string {
  try {
    const info = readFileSync('/proc/cpuinfo', 'utf8')
    const found = ['avx2', 'avx512f', 'avx512_bf16', 'amx_bf16'].filter((f) =>
      info.includes(` ${f}`),
    )
    return found.length === 0 ? '' : ` (${found.join(', ')})`
  } catch {
    return ''
  }
}

/** BENCH_COMMIT where the code runs without its repository, as on a lent GPU host. */
function commit(): string {
  const { BENCH_COMMIT } = process.env
  if (BENCH_COMMIT !== undefined) return BENCH_COMMIT
  try {
    const hash = execFileSync('git', ['rev-parse', '--short=12', 'HEAD'], {
      encoding: 'utf8',
    }).trim()
    const status = execFileSync('git', ['status', '--porcelain', '--', ':!bench/results'], {
      encoding: 'utf8',
    })
    return status.trim() === '' ? hash : `${hash}+changes`
  } catch {
    return 'unknown'
  }
}
