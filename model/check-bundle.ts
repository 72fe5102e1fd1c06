import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import type { Checked } from './check-worker.js'
import { fromWire } from './errors.js'
import { type Bundle, openBundle } from './manifest.js'

/**
 * As `openBundle`, beside live traffic: sizes and hashes are checked on a thread of the lowest
 * priority. Vocabularies are still read by the caller's.
 * @throws {RankError} BUNDLE_INVALID or CONFIG_INVALID naming the file or field
 */
export async function openBundleInBackground(folder: string): Promise<Bundle> {
  const worker = new Worker(new URL('./check-worker.js', import.meta.url), {
    workerData: { folder },
  })
  const exited = once(worker, 'exit')
  const [message] = await once(worker, 'message')
  await exited
  const { error }: Checked = message
  if (error !== undefined) throw fromWire(error)
  return openBundle(folder, { filesAreChecked: true })
}
