/// <reference lib="dom" />
import { Problem, postRank } from './api.js'
import { type ChartData, costChart } from './chart.js'
import { byId, el } from './dom.js'
import type { Candidate, Draft } from './draft.js'
import { fitLine, median, type Point } from './fit.js'
import { digits, duration } from './format.js'
import { hideProblem, showProblem } from './problem-view.js'

/** Bounded: 64 requests, one at a time. */
const SIZES = [1, 16, 64, 256, 512, 1024, 2048, 3072, 4096]
const ROUNDS = 7
const DEADLINE_MS = 10_000

type Measured = { readonly m: number; readonly ms: number[]; microBatches: number }

/** Wires the tab that measures cost against candidates; `draft` is the request of the moment. */
export function startCost(draft: () => Draft): void {
  const button = byId('measure', HTMLButtonElement)
  const stop = byId('stop', HTMLButtonElement)
  const status = byId('cost-status', HTMLElement)
  const problem = byId('cost-problem', HTMLElement)
  const chart = byId('cost-chart', HTMLElement)
  let data: ChartData | undefined
  let run = new AbortController()

  const draw = () => {
    if (data !== undefined && chart.clientWidth > 0) {
      chart.replaceChildren(costChart(data, chart.clientWidth))
    }
  }
  new ResizeObserver(draw).observe(chart)

  function show(measured: readonly Measured[], round: number): void {
    // The fastest run is what the work costs; the others also waited for what else the machine did.
    const points = measured.map(({ m, ms }): Point => ({ x: m, y: Math.min(...ms) }))
    const line = fitLine(points)
    const seen = measured.flatMap(({ m, ms }) => ms.map((y) => ({ x: m, y })))
    const law = line && `${duration(line.intercept)} + ${duration(line.slope)} per candidate`
    const fit = law === undefined ? '' : `${law}, R² ${digits(line?.r2 ?? 0, 4)}`
    const text = round < ROUNDS ? `Round ${round} of ${ROUNDS}: ${fit}` : fit
    data = { points, seen, line, label: `Milliseconds against candidates: ${text}` }
    status.textContent = text
    draw()
    byId('cost-table', HTMLElement).replaceChildren(table(measured))
  }

  async function measure(): Promise<void> {
    run = new AbortController()
    const { signal } = run
    const base = { ...draft(), topK: 1, deadlineMs: DEADLINE_MS }
    const measured = SIZES.map((m): Measured => ({ m, ms: [], microBatches: 0 }))
    // Builds the K/V and wakes the server up: not part of the figures.
    await postRank({ ...base, candidates: cycled(base.candidates, 1) }, signal)
    // Round by round: what else the machine does then falls on every size alike.
    for (let round = 1; round <= ROUNDS; round++) {
      for (const entry of measured) {
        const request = { ...base, candidates: cycled(base.candidates, entry.m) }
        const { answer } = await postRank(request, signal)
        entry.ms.push(answer.timings.totalMs)
        entry.microBatches = answer.explain.microBatches
      }
      show(measured, round)
    }
  }

  button.addEventListener('click', () => {
    button.disabled = true
    stop.hidden = false
    hideProblem(problem)
    status.textContent = 'Measuring …'
    measure()
      .catch((error: unknown) => {
        if (!(error instanceof Problem)) {
          status.textContent = `Stopped. ${status.textContent ?? ''}`
          if (run.signal.aborted) return
        }
        showProblem(problem, error)
      })
      .finally(() => {
        button.disabled = false
        stop.hidden = true
      })
  })
  stop.addEventListener('click', () => {
    run.abort()
    button.focus()
  })
}

/** So many candidates, those of the request again and again: repeated ones are scored each. */
function cycled(candidates: readonly Candidate[], m: number): Candidate[] {
  return Array.from({ length: m }, (_, i) => candidates[i % candidates.length] ?? '')
}

function table(measured: readonly Measured[]): HTMLElement {
  const head = ['Candidates', 'Micro-batches', 'Median', 'Fastest', 'Slowest', 'Per candidate']
  return el(
    'table',
    { id: 'costs' },
    el('caption', {}, 'Time in the server: tokens, K/V, scores, heads; without JSON and network'),
    el(
      'thead',
      {},
      el('tr', {}, ...head.map((name) => el('th', { scope: 'col', class: 'number' }, name))),
    ),
    el(
      'tbody',
      {},
      ...measured.map(({ m, ms, microBatches }) => {
        const middle = median(ms)
        const cells = [
          digits(m),
          String(microBatches),
          duration(middle),
          duration(Math.min(...ms)),
          duration(Math.max(...ms)),
          duration(middle / m),
        ]
        return el('tr', {}, ...cells.map((cell) => el('td', { class: 'number' }, cell)))
      }),
    ),
  )
}
