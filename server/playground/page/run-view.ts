/// <reference lib="dom" />
import type { Answer } from './api.js'
import { el } from './dom.js'
import { count, duration } from './format.js'
import { microBatchSizes, stagesOf } from './stages.js'

/** One ranking as the list of the last ones keeps it. */
export type Run = { readonly number: number; readonly answer: Answer; readonly roundTripMs: number }

const STATES = {
  hit: { name: 'Hit', colour: 'k2', why: 'the whole history was cached: nothing was prefilled' },
  stale: {
    name: 'Append',
    colour: 'k1',
    why: 'a beginning was cached: only the rest was prefilled',
  },
  miss: { name: 'Miss', colour: 'k3', why: 'nothing cached fits this history: all was prefilled' },
  none: {
    name: 'One pass',
    colour: 'k4',
    why: 'history and candidates in one run, nothing is kept',
  },
} as const
const MAX_DRAWN_BATCHES = 64
/** In the order of the stages. */
const STAGE_COLOURS = ['k6', 'k4', 'k1', 'k2', 'k5']

/** What a ranking did, in one sentence. */
export function summaryOf({ answer, roundTripMs }: Run): string {
  const { kv, explain, timings } = answer
  const of = answer.partial ? ` of ${explain.candidates}` : ''
  return (
    `Ranked ${explain.scored}${of} ${explain.candidates === 1 ? 'candidate' : 'candidates'} in ` +
    `${duration(timings.totalMs)} (${duration(roundTripMs)} with the way here and back). ` +
    `K/V ${STATES[kv.state].name.toLowerCase()}: ${kv.reusedTokens} tokens reused, ${kv.prefilledTokens} prefilled.`
  )
}

/** What the cache did, and beside it in the rankings before; the newest run comes first. */
export function cacheView(runs: readonly Run[]): readonly Node[] {
  const [run] = runs
  if (run === undefined) return []
  const { kv } = run.answer
  const { name, colour, why } = STATES[kv.state]
  return [
    el(
      'p',
      { class: `state ${colour}` },
      el('strong', { id: 'kv-state' }, name),
      el('span', {}, `${why}${placeOf(kv.tier)}.`),
    ),
    el(
      'div',
      { class: 'bar new', role: 'img', 'aria-label': tokensOf(run.answer) },
      fill('k2', kv.reusedTokens),
      fill('k3', kv.prefilledTokens),
    ),
    el(
      'ul',
      { class: 'legend' },
      el('li', {}, el('span', { class: 'dot k2' }), count(kv.reusedTokens, 'token'), ' reused'),
      el(
        'li',
        {},
        el('span', { class: 'dot k3' }),
        count(kv.prefilledTokens, 'token'),
        ' prefilled',
      ),
    ),
    runsTable(runs),
  ]
}

/** Stages of a ranking on one axis, the scoring cut into its micro-batches, and the numbers. */
export function timeView({ answer, roundTripMs }: Run): readonly Node[] {
  const { explain, warnings } = answer
  const stages = stagesOf(explain.timings)
  const sizes = microBatchSizes(explain.scored, explain.microBatches)
  const bar = stages.map(({ name, ms, from, to }, i) => {
    const node = el('div', {
      class: `stage ${STAGE_COLOURS[i]}`,
      title: `${name} ${duration(ms)}`,
    })
    node.style.flexGrow = String(to - from)
    if (name === 'score' && sizes.length <= MAX_DRAWN_BATCHES) {
      node.append(...sizes.map((size) => batch(size)))
    }
    return node
  })
  const label = stages.map(({ name, ms }) => `${name} ${duration(ms)}`).join(', ')
  const notes = [
    explain.truncatedEvents > 0
      ? `${count(explain.truncatedEvents, 'event')} beyond the model’s limit were left out.`
      : '',
    explain.retries > 0 ? 'Run again after a worker crashed.' : '',
    ...warnings.map(({ code, message, count: n }) => `${code} (${n}): ${message}.`),
  ].filter((note) => note !== '')
  return [
    el('div', { class: 'stages', role: 'img', 'aria-label': label }, ...bar),
    el(
      'table',
      {},
      el(
        'caption',
        {},
        `${count(explain.scored, 'candidate')} in ${batches(sizes)}, ${count(explain.historyTokens, 'history token')}`,
      ),
      el(
        'tbody',
        {},
        ...stages.map(({ name, what, ms }, i) =>
          el(
            'tr',
            {},
            el('th', { scope: 'row' }, el('span', { class: `dot ${STAGE_COLOURS[i]}` }), name),
            el('td', {}, what),
            el('td', { class: 'number' }, duration(ms)),
          ),
        ),
        el(
          'tr',
          {},
          el('th', { scope: 'row' }, 'round trip'),
          el('td', {}, 'all of it, seen from this page'),
          el('td', { class: 'number' }, duration(roundTripMs)),
        ),
      ),
    ),
    ...notes.map((note) => el('p', { class: 'hint' }, note)),
  ]
}

function runsTable(runs: readonly Run[]): HTMLElement {
  const head = ['Run', 'K/V', 'Reused', 'Prefilled', 'Total'].map((name, i) =>
    el('th', { scope: 'col', ...(i > 1 && { class: 'number' }) }, name),
  )
  const rows = runs.map(({ number, answer: { kv, timings } }) =>
    el(
      'tr',
      {},
      el('th', { scope: 'row' }, `#${number}`),
      el(
        'td',
        { class: STATES[kv.state].colour },
        el('span', { class: 'dot' }),
        STATES[kv.state].name,
      ),
      el('td', { class: 'number' }, String(kv.reusedTokens)),
      el('td', { class: 'number' }, String(kv.prefilledTokens)),
      el('td', { class: 'number' }, duration(timings.totalMs)),
    ),
  )
  return el(
    'div',
    { class: 'wide runs' },
    el(
      'table',
      { id: 'runs' },
      el('caption', {}, 'Your last rankings'),
      el('thead', {}, el('tr', {}, ...head)),
      el('tbody', {}, ...rows),
    ),
  )
}

function batches(sizes: readonly number[]): string {
  const most = Math.max(...sizes)
  return sizes.length === 1 ? '1 micro-batch' : `${sizes.length} micro-batches of at most ${most}`
}

function batch(size: number): HTMLElement {
  const node = el('span', { class: 'batch', title: count(size, 'candidate') })
  node.style.flexGrow = String(size)
  return node
}

function fill(colour: string, share: number): HTMLElement {
  const node = el('div', { class: `fill ${colour}` })
  node.style.flexGrow = String(share)
  return node
}

function placeOf(tier: number | undefined): string {
  if (tier === undefined) return ''
  return tier === 1 ? ' (from this process)' : ' (from Redis)'
}

function tokensOf({ kv }: Answer): string {
  return `${kv.reusedTokens} tokens reused, ${kv.prefilledTokens} prefilled`
}
