import { Counter, Histogram, type Registry } from 'prom-client'
import type { Admission, AdmissionEvents } from './admission.js'
import { PRIORITIES } from './fair-queue.js'
import { addScraped } from './scraped.js'

/** From no wait to ten times the default bound of the queue. */
const WAIT_SEC = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1]

/** What waits, how long it did, and what was refused; `watch` says whose queue it is. */
export function createQueueMetrics(
  registry: Registry,
): AdmissionEvents & { watch(admission: Pick<Admission, 'stats'>): void } {
  const registers = [registry]
  const waits = new Histogram({
    name: 'peregrine_queue_wait_seconds',
    help: 'Time that work waited for its turn',
    labelNames: ['priority'],
    buckets: WAIT_SEC,
    registers,
  })
  const refusals = new Counter({
    name: 'peregrine_refusals_total',
    help: 'Requests refused with 429, by reason',
    labelNames: ['reason', 'priority'],
    registers,
  })
  const predicted = new Counter({
    name: 'peregrine_work_predicted_seconds_total',
    help: 'What the work that was done was taken for, by API key',
    labelNames: ['key'],
    registers,
  })
  const measured = new Counter({
    name: 'peregrine_work_measured_seconds_total',
    help: 'What it took, from the beginning of its turn to its end',
    labelNames: ['key'],
    registers,
  })

  return {
    waited: (priority, ms) => waits.observe({ priority }, ms / 1000),
    refused: (reason, priority) => refusals.inc({ reason, priority }),
    worked(key, predictedMs, measuredMs) {
      predicted.inc({ key }, predictedMs / 1000)
      measured.inc({ key }, measuredMs / 1000)
    },
    watch(admission) {
      const ofQueues = (
        name: string,
        help: string,
        value: (queued: { readonly length: number; readonly workMs: number }) => number,
      ) =>
        addScraped(registry, {
          ...{ kind: 'gauge', name, help, labelNames: ['priority'] },
          read: () => {
            const { queued } = admission.stats()
            return PRIORITIES.map((priority) => ({
              labels: { priority },
              value: value(queued[priority]),
            }))
          },
        })
      ofQueues('queue_length', 'Rankings and prefetches that wait for their turn', (queued) => {
        return queued.length
      })
      ofQueues('queue_work_seconds', 'Predicted compute of what waits', ({ workMs }) => {
        return workMs / 1000
      })
      addScraped(registry, {
        kind: 'gauge',
        name: 'work_rate',
        help: 'Predicted seconds of work that are done per second when there is always some',
        read: () => admission.stats().workPerMs,
      })
      addScraped(registry, {
        kind: 'gauge',
        name: 'running_requests',
        help: 'Rankings and prefetches under way, none of them waiting for its turn',
        read: () => admission.stats().running,
      })
    },
  }
}
