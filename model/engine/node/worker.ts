// Entry of a worker thread: one set of sessions, one queue. It ends by itself when told to close,
// because stopping a thread inside an inference aborts the whole process.
import { parentPort, workerData } from 'node:worker_threads'
import { RankError, toWire } from '../../errors.js'
import { lowerPriority } from '../priority.js'
import type { FromWorker, Job, ToWorker, WorkerOptions } from './protocol.js'
import { createRunner } from './runner.js'
import { createSessions, type Sessions } from './sessions.js'

const options: WorkerOptions = workerData

function post(message: FromWorker, transfer: ArrayBuffer[] = []): void {
  parentPort?.postMessage(message, transfer)
}

async function main(): Promise<void> {
  // On Linux this is the calling thread's own, and what ONNX Runtime's threads inherit.
  if (process.platform === 'linux') lowerPriority(0)
  let sessions: Sessions
  try {
    sessions = await createSessions(options)
  } catch (error) {
    post({ kind: 'failed', error: toWire(error) })
    parentPort?.close()
    return
  }
  const runner = createRunner(sessions, options.manifest)
  let queue = Promise.resolve()
  /** Jobs behind the one that runs. */
  const waiting = new Set<number>()
  const runJob = async (id: number, job: Job) => {
    try {
      if (!waiting.delete(id)) throw new RankError('CANCELLED', 'dropped before it ran')
      const answer = await runner.run(job)
      post({ kind: 'done', id, answer }, transferables(answer))
    } catch (error) {
      post({ kind: 'error', id, error: toWire(error) })
    }
  }
  const close = async () => {
    await runner.close()
    const { prefill, score, rank, encode, retrieve } = sessions
    await Promise.all([prefill, score, rank, encode, retrieve].map((s) => s?.release()))
    parentPort?.close()
  }
  parentPort?.on('message', (message: ToWorker) => {
    if (message.kind === 'job') waiting.add(message.id)
    if (message.kind === 'cancel') {
      waiting.delete(message.id)
      return
    }
    queue = queue.then(() => {
      switch (message.kind) {
        case 'job':
          return runJob(message.id, message.job)
        case 'release':
          return runner.release(message.handle)
        case 'close':
          return close()
      }
    })
  })
  const { provider, warning } = sessions
  post({ kind: 'ready', provider, ...(warning === undefined ? {} : { warning }) })
}

/** Logits travel without a copy; they are fresh arrays that nobody else holds. */
function transferables(answer: unknown): ArrayBuffer[] {
  if (typeof answer !== 'object' || answer === null || !('logits' in answer)) return []
  const arrays = Array.isArray(answer.logits) ? answer.logits : [answer.logits]
  return arrays.flatMap((a) =>
    a instanceof Float32Array &&
    a.buffer instanceof ArrayBuffer &&
    a.byteLength === a.buffer.byteLength
      ? [a.buffer]
      : [],
  )
}

await main()
