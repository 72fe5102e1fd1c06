/// <reference lib="dom" />
import { getMetrics } from './api.js'
import { sparkline } from './chart.js'
import { byId, el } from './dom.js'
import { parseExposition } from './exposition.js'
import { figuresOf, type Scrape } from './figures.js'
import { hideProblem, showProblem } from './problem-view.js'

const EVERY_MS = 3000
const KEPT = 60

/** Wires the metrics tab: it asks only while it can be seen. */
export function startMetrics(): { setVisible(isVisible: boolean): void } {
  const problem = byId('metrics-problem', HTMLElement)
  const trends = new Map<string, number[]>()
  let before: Scrape | undefined
  let isVisible = false
  let timer = 0

  async function refresh(): Promise<void> {
    const samples = parseExposition(await getMetrics())
    const now = { atMs: performance.now(), samples }
    const tiles = figuresOf(now, before).map(({ title, big, lines, trend }) =>
      el(
        'section',
        { class: 'card tile' },
        el('h3', {}, title),
        el('p', { class: 'big' }, big),
        ...lines.map((line) => el('p', { class: 'sub' }, line)),
        trend === undefined ? undefined : trendOf(title, trend),
      ),
    )
    before = now
    byId('tiles', HTMLElement).replaceChildren(...tiles)
    byId('metrics-at', HTMLElement).textContent = `Last at ${new Date().toLocaleTimeString()}.`
    hideProblem(problem)
  }

  function trendOf(title: string, value: number): Node {
    const values = [...(trends.get(title) ?? []), value].slice(-KEPT)
    trends.set(title, values)
    return sparkline(values, `${title}, the last ${values.length} readings`)
  }

  function tick(): void {
    window.clearTimeout(timer)
    if (!isVisible || document.hidden) return
    refresh()
      .catch((error: unknown) => showProblem(problem, error))
      .finally(() => {
        timer = window.setTimeout(tick, EVERY_MS)
      })
  }

  document.addEventListener('visibilitychange', tick)
  return {
    setVisible(visible) {
      isVisible = visible
      tick()
    },
  }
}
