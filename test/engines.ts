// What tests of whole pipelines need of real engines: both kinds, handles counted, queues kept full.
import { setMaxListeners } from 'node:events'
import { createEngine } from '../model/engine/create.js'
import type { Engine } from '../model/engine/engine.js'
import { createRandom } from '../model/random.js'
import { type ModelFixture, randomTokens } from './fixtures.js'

export const KINDS = ['capi', 'node'] as const
export type Kind = (typeof KINDS)[number]

/** One run at a time, one thread: what a test can predict. */
export function openEngine(engine: Kind, { bundle }: Pick<ModelFixture, 'bundle'>) {
  return createEngine({ bundle, engine, workers: 1, threadsPerWorker: 1 })
}

/** The same engine; `live()` is the handles made and not released. */
export function countHandles(engine: Engine): Engine & { live(): number } {
  let live = 0
  return {
    ...engine,
    async prefill(...args) {
      const handle = await engine.prefill(...args)
      live++
      return handle
    },
    async importKv(pages) {
      const handle = await engine.importKv(pages)
      live++
      return handle
    },
    release(handle) {
      live--
      engine.release(handle)
    },
    live: () => live,
  }
}

/**
 * Queues seconds of work, so that whatever comes next waits; `isBusy` until it is done or given up,
 * `giveUp` drops what is left of it and waits until the engine has nothing to do.
 */
export async function occupy(engine: Engine, model: ModelFixture) {
  const { history, candidates, queryTime } = randomTokens(model, createRandom(1), {
    events: 30,
    candidates: 2000,
  })
  const handle = await engine.prefill(history)
  const controller = new AbortController()
  setMaxListeners(0, controller.signal)
  let isBusy = true
  const work = Promise.allSettled(
    Array.from({ length: 1000 }, () =>
      engine.score(handle, candidates, queryTime, controller.signal),
    ),
  ).then(() => {
    isBusy = false
  })
  return {
    isBusy: () => isBusy,
    async giveUp() {
      controller.abort()
      await work
      engine.release(handle)
      await idle(engine)
    },
  }
}

/** Resolves once the engine has nothing queued and nothing running. */
export async function idle(engine: Engine): Promise<void> {
  while (engine.stats().pendingJobs > 0) await new Promise((resolve) => setImmediate(resolve))
}
