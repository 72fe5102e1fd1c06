import { Worker } from 'node:worker_threads'
import { deferred } from '../model/deferred.js'
import { fromWire, RankError } from '../model/errors.js'
import type { RedisKv, RemoteRows } from './redis-kv.js'
import type {
  Call,
  FromThread,
  LentKv,
  RedisThreadOptions,
  ThreadEvent,
  ToThread,
} from './redis-protocol.js'

/** Before a thread that ended by itself is started anew. */
const RESTART_MS = 1_000

type Pending = {
  readonly resolve: (value: never) => void
  readonly reject: (error: unknown) => void
}

/**
 * `RedisKv` in a thread of its own: 12 MB of pages are received and checked without the event loop of the
 * caller. Resolves once it takes calls, whether or not Redis is there.
 */
export async function startRedisKv(
  options: RedisThreadOptions,
  onEvent: (event: ThreadEvent) => void,
): Promise<RedisKv & { readonly thread: () => Worker | undefined }> {
  const pending = new Map<number, Pending>()
  let nextId = 1
  /** The thread that takes calls. */
  let worker: Worker | undefined
  /** The same, or one that is about to. */
  let newest: Worker | undefined
  let isOpen = false
  let restart: NodeJS.Timeout | undefined
  let closing: Promise<void> | undefined

  const start = (): Promise<void> => {
    const ready = deferred<void>()
    const thread = new Worker(new URL('./redis-worker.js', import.meta.url), {
      workerData: options,
    })
    newest = thread
    let lastError = 'ended without a word'
    thread.on('message', (message: FromThread) => {
      switch (message.kind) {
        case 'ready':
          worker = thread
          return ready.resolve()
        case 'done': {
          const caller = take(message.id)
          // Nobody waits any more, and it may be K/V: its memory goes back.
          if (caller === undefined) return giveBack(message.id)
          return caller.resolve(message.value as never)
        }
        case 'error':
          return take(message.id)?.reject(fromWire(message.error))
        case 'event':
          return onEvent(message.event)
      }
    })
    thread.on('error', (error) => {
      lastError = error instanceof Error ? error.message : String(error)
    })
    thread.on('exit', () => {
      worker = undefined
      newest = undefined
      const gone = new RankError('WORKER_CRASHED', `tier 2's thread: ${lastError}`)
      ready.reject(gone)
      for (const id of [...pending.keys()]) take(id)?.reject(gone)
      if (closing !== undefined || !isOpen) return
      onEvent({ kind: 'redisThreadCrash', error: lastError })
      restart = setTimeout(() => void start().catch(() => {}), RESTART_MS).unref()
    })
    return ready.promise
  }

  const take = (id: number): Pending | undefined => {
    const one = pending.get(id)
    pending.delete(id)
    return one
  }

  /** A thread that came later knows nothing of this id, and the memory went with the one before. */
  const giveBack = (id: number) => worker?.postMessage({ kind: 'spare', id } satisfies ToThread)

  const call = <T>(what: Call, transfer: ArrayBuffer[] = [], signal?: AbortSignal): Promise<T> =>
    new Promise<T>((resolve, reject) => {
      signal?.throwIfAborted()
      const thread = worker
      if (thread === undefined) {
        reject(new RankError('WORKER_CRASHED', "tier 2's thread is not there"))
        return
      }
      const id = nextId++
      const onAbort = () => {
        thread.postMessage({ kind: 'cancel', id } satisfies ToThread)
        take(id)?.reject(signal?.reason)
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      const done = () => signal?.removeEventListener('abort', onAbort)
      pending.set(id, {
        resolve: (value: T) => {
          done()
          resolve(value)
        },
        reject: (error) => {
          done()
          reject(error)
        },
      })
      thread.postMessage({ kind: 'call', id, call: what } satisfies ToThread, transfer)
    })

  await start()
  isOpen = true
  return {
    head: (user, signal) => call({ method: 'head', args: [user] }, [], signal),
    async fetch(user, head, tokens, signal) {
      const args: Parameters<RedisKv['fetch']> = [user, head, tokens]
      const { id, ...fetched } = await call<LentKv>({ method: 'fetch', args }, [], signal)
      return { ...fetched, done: () => giveBack(id) }
    },
    write: (user, chain, previous, rows) =>
      call({ method: 'write', args: [user, chain, previous, rows] }, buffersOf(rows)),
    forget: (user) => call({ method: 'forget', args: [user] }),
    thread: () => worker,
    close() {
      closing ??= (async () => {
        clearTimeout(restart)
        const thread = newest
        if (thread === undefined) return
        const exited = new Promise<void>((resolve) => {
          thread.once('exit', () => resolve())
        })
        thread.postMessage({ kind: 'close' } satisfies ToThread)
        await exited
      })()
      return closing
    },
  }
}

/** Rows go without a copy: their buffers are the writer's own, each handed over once. */
function buffersOf({ layers }: RemoteRows): ArrayBuffer[] {
  const buffers = new Set(layers.flatMap(({ k, v }) => [k.buffer, v.buffer]))
  return [...buffers].filter((buffer) => buffer instanceof ArrayBuffer)
}
