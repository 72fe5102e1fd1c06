import { readFileSync } from 'node:fs'

const NS_PER_MS = 1e6

/** Processor time of a process's main thread so far, as Linux tells it to the nanosecond; NaN where the system does not say. */
export function mainThreadMs(pid: number): number {
  try {
    const [ns] = readFileSync(`/proc/${pid}/task/${pid}/schedstat`, 'utf8').split(' ')
    return Number(ns) / NS_PER_MS
  } catch {
    return Number.NaN
  }
}
