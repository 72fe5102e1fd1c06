import { pointerStep } from './check.js'
import type { Task } from './config-schema.js'
import { RankError } from './errors.js'

/** Prediction of a task: a probability (binary) or the logit itself (regression). */
export function predict(task: Task, logit: number): number {
  switch (task.type) {
    case 'binary':
      return 1 / (1 + Math.exp(-logit))
    case 'regression':
      return logit
  }
}

/**
 * The weight of each task in the value formula, in task order: the request's where it gives any
 * (the others then count 0), else the bundle's, else 1 each.
 * @throws {RankError} INVALID_REQUEST at a name that is no task
 */
export function taskWeights(
  tasks: readonly Task[],
  bundle: { readonly [task: string]: number } | undefined,
  request: { readonly [task: string]: number } | undefined,
): number[] {
  const given = request ?? bundle
  if (given === undefined) return tasks.map(() => 1)
  const unknown = Object.keys(given).find((name) => !tasks.some((task) => task.name === name))
  if (unknown !== undefined) {
    throw new RankError(
      'INVALID_REQUEST',
      `weights must name tasks (${tasks.map(({ name }) => name).join(', ')}), got ${JSON.stringify(unknown)}`,
      { path: `/weights/${pointerStep(unknown)}` },
    )
  }
  if (Object.keys(given).length === 0) {
    throw new RankError('INVALID_REQUEST', 'weights must name at least one task, got {}', {
      path: '/weights',
    })
  }
  return tasks.map(({ name }) => (Object.hasOwn(given, name) ? (given[name] ?? 0) : 0))
}

/** What of `logits` (m, tasks) is worth: weighted sum of predictions, per candidate. */
export function valueScores(
  logits: Float32Array,
  tasks: readonly Task[],
  weights: readonly number[],
): Float64Array {
  const m = logits.length / tasks.length
  const scores = new Float64Array(m)
  tasks.forEach((task, t) => {
    const weight = weights[t] ?? 0
    if (weight === 0) return
    for (let c = 0; c < m; c++) {
      scores[c] = (scores[c] ?? 0) + weight * predict(task, logits[c * tasks.length + t] ?? 0)
    }
  })
  return scores
}

/** Indices of the `k` highest scores, best first; equal scores keep the request's order. */
export function topK(scores: Float64Array, k: number): number[] {
  const least = k < scores.length ? kthHighest(scores, k) : Number.NEGATIVE_INFINITY
  // Sorting with a comparator costs ten times as much as this: only the best get it.
  const order: number[] = []
  for (let i = 0; i < scores.length; i++) {
    if ((scores[i] ?? 0) >= least) order.push(i)
  }
  order.sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b)
  return order.slice(0, k)
}

/** The lowest of the `k` highest scores, 0 <= k <= m; 0 for none. By a heap of `k` scores, the lowest first. */
function kthHighest(scores: Float64Array, k: number): number {
  const heap = scores.slice(0, k)
  for (let i = (k >> 1) - 1; i >= 0; i--) sink(heap, heap[i] ?? 0, i)
  let lowest = heap[0] ?? 0
  for (let i = k; i < scores.length; i++) {
    const score = scores[i] ?? 0
    if (score <= lowest) continue
    sink(heap, score, 0)
    lowest = heap[0] ?? 0
  }
  return lowest
}

/** Puts a score into a heap at `hole`, or below where lower ones are, which rise. */
function sink(heap: Float64Array, score: number, hole: number): void {
  let at = hole
  for (let child = 2 * at + 1; child < heap.length; child = 2 * at + 1) {
    const right = child + 1
    if (right < heap.length && (heap[right] ?? 0) < (heap[child] ?? 0)) child = right
    const lower = heap[child] ?? 0
    if (lower >= score) break
    heap[at] = lower
    at = child
  }
  heap[at] = score
}
