/// <reference lib="dom" />
import type { Answer, SampleUser } from './api.js'
import { el } from './dom.js'
import type { Model } from './draft.js'
import { digits, percent } from './format.js'
import { aboutItem, colourOf } from './history.js'

export type ItemsView = {
  readonly answer: Answer
  readonly model: Model
  readonly sample: SampleUser | undefined
  /** Places by candidate of the ranking before, when it was of the same user. */
  readonly before: ReadonlyMap<number, number> | undefined
  onAdd(item: string): void
}

type Ranked = Answer['items'][number]

const MAX_ITEMS = 200

/** The best items with a bar per task, what the user really did, and how they moved. */
export function itemsView(view: ItemsView): readonly Node[] {
  const { answer, model } = view
  const shown = answer.items.slice(0, MAX_ITEMS)
  const ranges = model.tasks.map(({ name }) => rangeOf(shown, name))
  const hidden = answer.items.length - shown.length
  return [
    el('p', { class: 'hint' }, 'Bars compare the items shown here, task by task.'),
    ...truthView(view),
    el('ol', { id: 'ranked' }, ...shown.map((item, i) => row(view, item, i, ranges))),
    ...(hidden > 0 ? [el('p', { class: 'hint' }, `and ${hidden} more in the answer`)] : []),
  ]
}

/** What a sample user really met next, with the place that the ranking gave it. */
function truthView({ answer, sample }: ItemsView): Node[] {
  const shown = Object.entries(sample?.shown ?? {})
  if (shown.length === 0) return []
  const tags = shown.map(([item, actions]) => {
    const place = answer.items.findIndex((ranked) => ranked.item === item) + 1
    const at = place > 0 ? ` #${place}` : ''
    const colour = actions.length > 0 ? 'k2' : 'k6'
    return el('span', { class: `tag ${colour}` }, `${item}: ${didOf(actions)}${at}`)
  })
  return [el('p', { class: 'truth' }, el('span', {}, 'Really shown to the user next'), ...tags)]
}

function didOf(actions: readonly string[]): string {
  return actions.length > 0 ? actions.join(', ') : 'no action'
}

function row(view: ItemsView, ranked: Ranked, i: number, ranges: readonly Range[]) {
  const { model, sample, onAdd } = view
  const { item, score } = ranked
  const truth = Object.hasOwn(sample?.shown ?? {}, item) ? sample?.shown[item] : undefined
  const add = el(
    'button',
    {
      type: 'button',
      class: 'icon',
      'aria-label': `Add item ${item} to the history`,
      title: 'Add it to the history',
      click: () => onAdd(item),
    },
    '+',
  )
  const tasks = model.tasks.map(({ name, type }, t) => {
    const value = ranked.tasks[name] ?? Number.NaN
    const bar = el('div', { class: `fill ${colourOf(t)}` })
    bar.style.width = `${100 * shareOf(value, ranges[t])}%`
    return el(
      'div',
      { class: 'task' },
      el(
        'div',
        { class: 'line' },
        el('span', {}, name),
        el('b', {}, type === 'binary' ? percent(value) : digits(value)),
      ),
      el('div', { class: 'bar' }, bar),
    )
  })
  return el(
    'li',
    { class: 'item' },
    el('span', { class: 'place' }, String(i + 1)),
    el(
      'div',
      {},
      el(
        'div',
        { class: 'name' },
        el('b', {}, item),
        move(view, ranked, i),
        truth &&
          el(
            'span',
            { class: `tag ${truth.length > 0 ? 'k2' : 'k6'}` },
            `really shown: ${didOf(truth)}`,
          ),
      ),
      el('div', { class: 'about' }, aboutItem(item, sample?.catalogue)),
    ),
    el('div', { class: 'inline' }, el('span', { class: 'score' }, digits(score)), add),
    el('div', { class: 'tasks' }, ...tasks),
  )
}

function move({ before }: ItemsView, { index }: Ranked, place: number): Node | undefined {
  if (before === undefined) return undefined
  const old = before.get(index)
  if (old === undefined) return el('span', { class: 'move k1' }, 'new here')
  if (old === place) return undefined
  const places = Math.abs(old - place)
  const isUp = place < old
  return el(
    'span',
    { class: `move ${isUp ? 'k2' : 'k3'}`, 'aria-label': `${isUp ? 'up' : 'down'} by ${places}` },
    `${isUp ? '▲' : '▼'} ${places}`,
  )
}

type Range = { readonly low: number; readonly high: number }

/** From 0, or from the least where a task goes below it. */
function rangeOf(items: readonly Ranked[], task: string): Range {
  const values = items.map(({ tasks }) => tasks[task] ?? 0)
  return { low: Math.min(0, ...values), high: Math.max(0, ...values) }
}

function shareOf(value: number, range: Range | undefined): number {
  if (range === undefined || range.high === range.low || !Number.isFinite(value)) return 0
  return (value - range.low) / (range.high - range.low)
}
