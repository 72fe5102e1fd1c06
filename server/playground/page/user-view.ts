/// <reference lib="dom" />
import type { SampleUser } from './api.js'
import { byId, el, svg } from './dom.js'
import type { Draft, HistoryEvent } from './draft.js'
import { count, relative, span, utc } from './format.js'
import { aboutItem, type Kind, kindsOf, legendOf } from './history.js'

export type UserView = {
  readonly draft: Draft
  readonly actions: readonly string[]
  readonly sample: SampleUser | undefined
  /** The event that was added or changed last. */
  readonly fresh: HistoryEvent | undefined
  onEdit(index: number): void
  onRemove(index: number): void
}

/** More rows than this make the page slow; the strip shows every event. */
const MAX_ROWS = 300
const STRIP_HEIGHT = 58

/** Draws the user's facts, the strip of the history over time, and its events. */
export function showUser(view: UserView): void {
  const { draft } = view
  const kinds = kindsOf(draft.history, view.actions)
  byId('user-facts', HTMLElement).replaceChildren(
    fact('id', draft.user.id),
    ...Object.entries(draft.user.features ?? {}).map(([name, value]) => fact(name, String(value))),
    fact('candidates', String(draft.candidates.length)),
  )
  byId('history-title', HTMLElement).textContent =
    `History · ${count(draft.history.length, 'event')}`
  showStrip(draft, kinds)
  byId('legend', HTMLElement).replaceChildren(
    ...legendOf(kinds).map(({ name, colour, count: n }) =>
      el('li', {}, el('span', { class: `dot ${colour}` }), `${name} ${n}`),
    ),
  )
  showEvents(view, kinds)
}

/** Every event as a mark on one axis of time that ends at the query. */
export function showStrip({ history, time }: Draft, kinds: readonly Kind[]): void {
  const strip = byId('strip', HTMLElement)
  const first = history[0]
  if (first === undefined) {
    strip.replaceChildren()
    return
  }
  const width = Math.max(240, strip.clientWidth)
  const start = Math.min(first.time, time - 1)
  const end = Math.max(time, history.at(-1)?.time ?? time)
  const x = (at: number) => 6 + ((at - start) / (end - start)) * (width - 12)
  const label = `${count(history.length, 'event')} over ${span(end - start)} up to the query`
  const marks = history.map((event, i) =>
    svg('line', {
      class: `mark ${kinds[i]?.colour ?? 'k6'}`,
      x1: x(event.time),
      x2: x(event.time),
      y1: 8,
      y2: 34,
    }),
  )
  strip.replaceChildren(
    svg(
      'svg',
      { viewBox: `0 0 ${width} ${STRIP_HEIGHT}`, role: 'img', 'aria-label': label },
      svg('line', { class: 'axis', x1: 0, x2: width, y1: 38, y2: 38 }),
      ...marks,
      svg('line', { class: 'query', x1: x(time), x2: x(time), y1: 2, y2: 42 }),
      svg('text', { x: 0, y: 54 }, utc(start).slice(0, 10)),
      svg('text', { x: width, y: 54, 'text-anchor': 'end' }, 'query'),
    ),
  )
}

function showEvents(view: UserView, kinds: readonly Kind[]): void {
  const { draft } = view
  const { history } = draft
  const rows = history
    .map((event, i) => row(view, event, i, kinds[i]))
    .slice(-MAX_ROWS)
    .reverse()
  const older = history.length - rows.length
  byId('events', HTMLElement).replaceChildren(
    rows.length === 0
      ? el('p', { class: 'hint' }, 'No events yet: the model ranks by user and candidates alone.')
      : el('ol', {}, ...rows),
    older > 0 ? el('p', { class: 'hint' }, `and ${count(older, 'older event')}`) : '',
  )
}

function row(view: UserView, event: HistoryEvent, i: number, kind: Kind | undefined) {
  const { draft, sample, fresh, actions } = view
  const name = `item ${event.item}, ${relative(event.time, draft.time)}`
  const [mine] = kindsOf([event], actions)
  const tags = event.actions?.map((action) => {
    const [own] = kindsOf([{ ...event, actions: [action] }], actions)
    return el('span', { class: `tag ${own?.colour ?? 'k6'}` }, action)
  })
  const shownTags =
    tags === undefined || tags.length === 0
      ? [el('span', { class: 'tag k6' }, mine?.name ?? '')]
      : tags
  return el(
    'li',
    { class: `event ${kind?.colour ?? 'k6'}${event === fresh ? ' fresh' : ''}` },
    el('div', { class: 'what' }, el('b', {}, event.item), ...shownTags),
    el(
      'div',
      { class: 'about', title: `${utc(event.time)} UTC` },
      [relative(event.time, draft.time), aboutItem(event.item, sample?.catalogue)]
        .filter((part) => part !== '')
        .join(' · '),
    ),
    el(
      'div',
      { class: 'buttons' },
      iconButton('✎', `Edit ${name}`, () => view.onEdit(i)),
      iconButton('✕', `Remove ${name}`, () => view.onRemove(i)),
    ),
  )
}

function iconButton(sign: string, label: string, click: () => void) {
  return el(
    'button',
    { type: 'button', class: 'icon', 'aria-label': label, title: label, click },
    sign,
  )
}

function fact(name: string, value: string) {
  return el('div', {}, el('dt', {}, name), el('dd', {}, value))
}
