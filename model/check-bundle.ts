import { setImmediate } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import type { ExpectedFile, FoundFile } from './file-hash.js'
import { type Bundle, bundleOf, checkFiles, expectedFiles, readManifest } from './manifest.js'

/**
 * As `openBundle`, beside live traffic: files are hashed on a thread of the lowest priority, and the event loop gets
 * its turn between the steps that are left to it.
 * @throws {RankError} BUNDLE_INVALID or CONFIG_INVALID naming the file or field
 */
export async function openBundleInBackground(folder: string): Promise<Bundle> {
  const manifest = readManifest(folder)
  checkFiles(folder, manifest, await inspectOnThread(expectedFiles(folder, manifest)))
  const bundle = bundleOf(folder, manifest)
  await setImmediate()
  return bundle
}

function inspectOnThread(files: readonly ExpectedFile[]): Promise<readonly FoundFile[]> {
  const worker = new Worker(new URL('./hash-worker.js', import.meta.url), { workerData: files })
  return new Promise((resolve, reject) => {
    let found: readonly FoundFile[] | undefined
    worker.on('message', (answer: readonly FoundFile[]) => {
      found = answer
    })
    worker.on('error', reject)
    worker.on('exit', () => {
      if (found === undefined) reject(new Error('the thread that hashes ended without an answer'))
      else resolve(found)
    })
  })
}
