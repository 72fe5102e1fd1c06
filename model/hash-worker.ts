// Looks at files at the lowest priority, off the event loop: hashing takes seconds where weights are large.
import { parentPort, workerData } from 'node:worker_threads'
import { LOWEST, lowerPriority } from './engine/priority.js'
import { type ExpectedFile, inspectFiles } from './file-hash.js'

if (process.platform === 'linux') lowerPriority(0, LOWEST)

const files: readonly ExpectedFile[] = workerData
parentPort?.postMessage(inspectFiles(files))
