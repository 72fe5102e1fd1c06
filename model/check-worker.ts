// Checks a bundle's files at the lowest priority, off the event loop: hashing takes seconds where
// weights are large. Answers with the error, or with nothing.
import { parentPort, workerData } from 'node:worker_threads'
import { LOWEST, lowerPriority } from './engine/priority.js'
import { toWire, type WireError } from './errors.js'
import { openBundle } from './manifest.js'

export type Checked = { readonly error?: WireError }

if (process.platform === 'linux') lowerPriority(0, LOWEST)

function check(folder: string): Checked {
  try {
    openBundle(folder)
    return {}
  } catch (error) {
    return { error: toWire(error) }
  }
}

const { folder }: { readonly folder: string } = workerData
parentPort?.postMessage(check(folder))
