// Peak memory against m and b. Called by bench/run.ts.
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const M_SWEEP = [1024, 4096, 16_384]
const B_SWEEP = [64, 256, 1024]

export type MemoryPoint = { readonly m: number; readonly b: number; readonly peakMiB: number }

export function benchMemory(bundleFolder: string, log: (line: string) => void): MemoryPoint[] {
  const probe = fileURLToPath(new URL('./memory-probe.js', import.meta.url))
  return B_SWEEP.flatMap((b) =>
    M_SWEEP.map((m) => {
      const args = [probe, bundleFolder, String(m), String(b)]
      const peakMiB = Number(execFileSync(process.execPath, args, { encoding: 'utf8' }))
      log(`m = ${m}, b = ${b}: peak ${peakMiB} MiB`)
      return { m, b, peakMiB }
    }),
  )
}
