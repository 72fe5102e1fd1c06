import { Worker } from 'node:worker_threads'
import { RankError } from '../../errors.js'
import type { BackgroundCall, FromBackground, ToBackground } from './background-worker.js'
import type { Ort } from './ort.js'
import { fromPlain } from './ort-error.js'

/** ONNX Runtime on a thread of the lowest priority, one call at a time. */
export type Background = {
  /** Its sessions are made and run there until `end`; then, as ever, by the threads that `ort` has for it. */
  readonly ort: Ort
  /** Processor time of the calls so far, in milliseconds. */
  spentMs(): number
  /** Resolves when the thread is gone; what it still had to do is done. */
  end(): Promise<void>
}

type Pending = {
  readonly resolve: (answer: FromBackground) => void
  readonly reject: (error: unknown) => void
}

/**
 * Starts the thread. Sessions with threads of their own are made by the pool all the same: such
 * threads inherit the priority of whoever makes them, and would keep it.
 */
export function startBackground(ort: Ort, library: string, makesSessions: boolean): Background {
  const worker = new Worker(new URL('./background-worker.js', import.meta.url), {
    workerData: { library },
  })
  const pending = new Map<number, Pending>()
  let nextId = 1
  let spentMs = 0
  let idle = () => {}
  let ending: Promise<void> | undefined

  worker.on('message', (answer: FromBackground) => {
    spentMs = answer.spentMs
    const { error } = answer
    const call = pending.get(answer.id)
    pending.delete(answer.id)
    if (error === undefined) call?.resolve(answer)
    else call?.reject(fromPlain(error))
    if (pending.size === 0) idle()
  })
  const fail = (why: string) => {
    const error = new RankError('WORKER_CRASHED', `the background thread ended: ${why}`)
    for (const { reject } of pending.values()) reject(error)
    pending.clear()
    idle()
  }
  worker.on('error', (error) => fail(error instanceof Error ? error.message : String(error)))
  worker.on('exit', () => fail('exited'))

  const call = (what: BackgroundCall) =>
    new Promise<FromBackground>((resolve, reject) => {
      const id = nextId++
      pending.set(id, { resolve, reject })
      worker.postMessage({ id, ...what } satisfies ToBackground)
    })

  return {
    ort: {
      ...ort,
      async run(args) {
        if (ending !== undefined) return ort.run(args)
        await call({ kind: 'run', args })
      },
      async createSession(env, graph, options, container) {
        if (!makesSessions || ending !== undefined) {
          return ort.createSession(env, graph, options, container)
        }
        const { session } = await call({ kind: 'create', env, graph, options, container })
        ort.adopt()
        return session ?? 0n
      },
    },
    spentMs: () => spentMs,
    end() {
      ending ??= (async () => {
        if (worker.threadId === -1) return
        if (pending.size > 0) {
          await new Promise<void>((resolve) => {
            idle = resolve
          })
        }
        // Idle: stopping a thread inside a run would abort the process.
        await worker.terminate()
      })()
      return ending
    },
  }
}
