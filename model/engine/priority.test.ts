import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'

/** The niceness of a thread that had `niceness` before its priority was lowered. */
async function lowered(niceness: number): Promise<number> {
  // On Linux 0 is the calling thread, and only threads of their own may be tried on.
  const code = `
    const { getPriority, setPriority } = require('node:os')
    const { parentPort, workerData } = require('node:worker_threads')
    import(workerData.module).then(({ lowerPriority }) => {
      setPriority(0, workerData.niceness)
      lowerPriority(0)
      parentPort.postMessage(getPriority(0))
    })`
  const module = new URL('./priority.js', import.meta.url).href
  const worker = new Worker(code, { eval: true, workerData: { module, niceness } })
  const [answer] = await once(worker, 'message')
  await worker.terminate()
  return answer
}

test('a thread’s priority is lowered to 5 and never raised', {
  skip: process.platform !== 'linux',
}, async () => {
  assert.deepEqual(await Promise.all([0, 4, 5, 6, 19].map(lowered)), [5, 5, 5, 6, 19])
})
