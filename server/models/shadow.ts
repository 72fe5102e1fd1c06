import { Counter, Histogram, type Registry } from 'prom-client'
import type { RankResult } from '../../falcon/types.js'
import type { Parsed } from '../parse.js'
import { removeModel } from './metrics.js'
import type { ModelSource } from './source.js'

/** Of differences of probabilities; regression tasks may go beyond. */
const DIFFERENCES = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1]
/** Waiting for a moment without load; the oldest are dropped first. */
const MAX_WAITING = 16

export type ShadowOptions = {
  readonly models: Pick<ModelSource, 'shadowOf'>
  /** False while live requests need all there is. */
  readonly hasRoom: () => boolean
  readonly registry: Registry
  /** In [0, 1). */
  readonly random?: () => number
}

export type Shadows = ReturnType<typeof createShadows>

type Job = { readonly name: string; readonly parsed: Parsed; readonly live: RankResult }

/**
 * Ranks a share of a model's requests once more on its shadow, after they were answered and while
 * nobody waits for the machine, and measures how far the predictions differ. One at a time.
 */
export function createShadows(options: ShadowOptions) {
  const { models, hasRoom, registry, random = Math.random } = options
  const registers = [registry]
  const difference = new Histogram({
    name: 'peregrine_shadow_difference',
    help: 'Mean absolute difference of a request’s predictions, shadow against live, per task',
    labelNames: ['model', 'task'],
    buckets: DIFFERENCES,
    registers,
  })
  const rankings = new Counter({
    name: 'peregrine_shadow_rankings_total',
    help: 'Requests chosen for a shadow, by what became of them',
    labelNames: ['model', 'outcome'],
    registers,
  })
  const waiting: Job[] = []
  let isRunning = false

  const run = async ({ name, parsed, live }: Job): Promise<void> => {
    // The shadow of now: what was one when the request came may be gone.
    const lease = models.shadowOf(name)?.lease()
    if (lease === undefined) return
    let outcome = 'failed'
    try {
      // Without what belongs to the live model's answer: its length, its time, its formula.
      const { useStored } = parsed.options
      const result = await lease.ranker.rank(parsed.input, useStored ? { useStored } : {})
      for (const [task, mean] of meanDifferences(live, result)) {
        difference.observe({ model: lease.id, task }, mean)
      }
      outcome = 'ranked'
    } catch {
      // Counted: the live answer is what was asked for.
    }
    rankings.inc({ model: lease.id, outcome })
    lease.done()
  }
  const next = async (): Promise<void> => {
    if (isRunning) return
    isRunning = true
    while (hasRoom()) {
      const job = waiting.shift()
      if (job === undefined) break
      await run(job)
    }
    isRunning = false
  }

  return {
    /** Chooses some of the requests that the model `name` has answered. */
    offer(name: string, parsed: Parsed, live: RankResult): void {
      const shadow = models.shadowOf(name)
      if (shadow === undefined || 100 * random() >= shadow.sharePercent) return
      waiting.push({ name, parsed, live })
      if (waiting.length > MAX_WAITING) {
        waiting.shift()
        rankings.inc({ model: shadow.id, outcome: 'dropped' })
      }
      // After the answer is on its way.
      setImmediate(() => void next())
    },
    /** Removes what a model that is gone has counted. */
    forget(model: string): void {
      void removeModel(difference, model)
      void removeModel(rankings, model)
    },
  }
}

/** Per task that both have, over the items that both answered. */
export function meanDifferences(live: RankResult, shadow: RankResult): Map<string, number> {
  const byIndex = new Map(shadow.items.map((item) => [item.index, item]))
  const sums = new Map<string, { sum: number; count: number }>()
  for (const { index, tasks } of live.items) {
    const other = byIndex.get(index)?.tasks ?? {}
    for (const [task, prediction] of Object.entries(tasks)) {
      const shadowed = other[task]
      if (shadowed === undefined) continue
      const entry = sums.get(task) ?? { sum: 0, count: 0 }
      entry.sum += Math.abs(shadowed - prediction)
      entry.count++
      sums.set(task, entry)
    }
  }
  return new Map([...sums].map(([task, { sum, count }]) => [task, sum / count]))
}
