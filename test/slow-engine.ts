import type { Engine } from '../model/engine/engine.js'

/** The same engine with a clock that moves 5 ms with every micro-batch or pass and 1 ms with every prefill. */
export function slowEngine(engine: Engine) {
  let clock = 0
  let runs = 0
  const slow: Engine = {
    ...engine,
    prefill: (...args) => {
      clock += 1
      return engine.prefill(...args)
    },
    score: (...args) => {
      clock += 5
      runs++
      return engine.score(...args)
    },
    rank: (...args) => {
      clock += 5
      runs++
      return engine.rank(...args)
    },
  }
  return { engine: slow, now: () => clock, runs: () => runs }
}
