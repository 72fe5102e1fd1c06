import { RankError } from '../../errors.js'
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
  let lost: string | undefined
  const watch = <T>(job: Promise<T>, signal?: AbortSignal): Promise<T> =>
    job.catch((failure: unknown) => {
      if (signal?.aborted) throw failure
      if (lost === undefined) ask()
      throw lost === undefined ? failure : new RankError('WORKER_CRASHED', lost, { cause: failure })
    })
  const ask = () => {
    try {
      probe()
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      lost = `the GPU refuses every call: ${why}`
      onEvent({ kind: 'deviceLost', error: why })
    }
  }
  const { gpuMemory } = engine
  return {
    ...engine,
    ...(gpuMemory !== undefined && {
      gpuMemory: () => (lost === undefined ? orUndefined(gpuMemory) : undefined),
    }),
    prefill: (history, past, signal) => watch(engine.prefill(history, past, signal), signal),
    score: (handle, candidates, queryTime, signal) =>
      watch(engine.score(handle, candidates, queryTime, signal), signal),
    rank: (users, signal) => watch(engine.rank(users, signal), signal),
    exportKv: (handle, start) => watch(engine.exportKv(handle, start)),
    importKv: (pages) => watch(engine.importKv(pages)),
    stats: () => (lost !== undefined ? { ...engine.stats(), workers: 0 } : engine.stats()),
  }
}

function orUndefined<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch {
    return undefined
  }
}
