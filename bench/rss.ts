import { readFileSync } from 'node:fs'

/** Resident memory of a process now, MiB. */
export function rssMiB(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? Number.NaN) / 1024
}

/** Resident memory of a process, MiB, from now on once in `everyMs`. */
export function watchRss(pid: number, everyMs = 1000) {
  const samples = [rssMiB(pid)]
  const timer = setInterval(() => samples.push(rssMiB(pid)), everyMs)
  return {
    stop(): readonly number[] {
      clearInterval(timer)
      return samples
    },
  }
}
