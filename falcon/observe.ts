import type { Costs } from '../cache/costs.js'
import type { Engine } from '../model/engine/engine.js'

/**
 * The same engine; every run that succeeds tells `costs` what it took, its wait for a worker
 * included: that is what the next one will take.
 *
 * @param slots - embedding rows of one candidate
 * @param now - milliseconds, monotonic
 */
export function observeEngine(
  engine: Engine,
  costs: Costs,
  slots: number,
  now: () => number,
): Engine {
  return {
    ...engine,
    async prefill(history, past, signal) {
      const start = now()
      const handle = await engine.prefill(history, past, signal)
      // Nothing new is no run: the handle views the past's.
      if (history.length > 0) {
        costs.observePrefill(history.length, past?.tokens ?? 0, now() - start)
      }
      return handle
    },
    async score(handle, candidates, queryTime, signal) {
      const start = now()
      const logits = await engine.score(handle, candidates, queryTime, signal)
      costs.observeScore(candidates.length / slots, handle.tokens, now() - start)
      return logits
    },
    async rank(users, signal) {
      const start = now()
      const logits = await engine.rank(users, signal)
      const [user] = users
      // Users that share a run share its time: what one of them alone takes is not known then.
      if (user !== undefined && users.length === 1) {
        costs.observeRank(user.candidates.length / slots, user.history.length, now() - start)
      }
      return logits
    },
  }
}
