import { once } from 'node:events'
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
  checkFiles(folder, manifest, await inspectFiles(expectedFiles(folder, manifest)))
  const bundle = bundleOf(folder, manifest)
  await setImmediate()
  return bundle
}

async function inspectFiles(files: readonly ExpectedFile[]): Promise<readonly FoundFile[]> {
  const worker = new Worker(new URL('./hash-worker.js', import.meta.url), { workerData: files })
  const [[found]] = await Promise.all([once(worker, 'message'), once(worker, 'exit')])
  return found
}
