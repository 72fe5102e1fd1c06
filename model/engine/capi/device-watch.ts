import type { Engine, EngineEvent } from '../engine.js'

/**
 * The engine, which has no workers any more once its GPU is lost: after an error like an illegal
 * address or a memory fault CUDA refuses every later call of the process. Asked after a job failed, so
 * that what works pays nothing. `probe` makes any harmless call to the GPU and throws what it says.
 */
export function watchDevice(
  engine: Engine,
  probe: () => unknown,
  onEvent: (event: EngineEvent) => void,
): Engine {
  let isLost = false
  const watch = <T>(job: Promise<T>, signal?: AbortSignal): Promise<T> =>
    job.catch((failure: unknown) => {
      if (!isLost && !signal?.aborted) ask()
      throw failure
    })
  const ask = () => {
    try {
      probe()
    } catch (error) {
      isLost = true
      onEvent({ kind: 'deviceLost', error: error instanceof Error ? error.message : String(error) })
    }
  }
  return {
    ...engine,
    prefill: (history, past, signal) => watch(engine.prefill(history, past, signal), signal),
    score: (handle, candidates, queryTime, signal) =>
      watch(engine.score(handle, candidates, queryTime, signal), signal),
    rank: (users, signal) => watch(engine.rank(users, signal), signal),
    exportKv: (handle) => watch(engine.exportKv(handle)),
    importKv: (pages) => watch(engine.importKv(pages)),
    stats: () => (isLost ? { ...engine.stats(), workers: 0 } : engine.stats()),
  }
}
