/// <reference lib="dom" />
import { getModel, getSample, getSamples, postRank, type SampleUser } from './api.js'
import { startCost } from './cost.js'
import { byId, el } from './dom.js'
import {
  addEvent,
  type Draft,
  exampleDraft,
  type HistoryEvent,
  itemOf,
  type Model,
  readDraft,
  removeEvent,
  replaceEvent,
} from './draft.js'
import { askEvent } from './event-dialog.js'
import { digits, fromField, toField } from './format.js'
import { kindsOf } from './history.js'
import { itemsView } from './items-view.js'
import { startMetrics } from './metrics.js'
import { hideProblem, showProblem } from './problem-view.js'
import { cacheView, type Run, summaryOf, timeView } from './run-view.js'
import { startTabs } from './tabs.js'
import { showStrip, showUser } from './user-view.js'

const LOADING_POLL_MS = 1000
const KEPT_RUNS = 6
const nowSec = () => Math.floor(Date.now() / 1000)

const problem = byId('problem', HTMLElement)
const summary = byId('summary', HTMLElement)
const rankButton = byId('rank', HTMLButtonElement)
const samplePicker = byId('sample', HTMLSelectElement)
const topK = byId('top-k', HTMLInputElement)
const queryTime = byId('query-time', HTMLInputElement)
const json = byId('json', HTMLTextAreaElement)
const jsonError = byId('json-error', HTMLElement)

/** Starts the page around the served model. */
function start(model: Model): void {
  let sample: SampleUser | undefined
  let draft = exampleDraft(model, nowSec())
  let fresh: HistoryEvent | undefined
  let runs: readonly Run[] = []
  let ranked = 0
  /** Counts the users chosen: an answer that comes for an earlier one is dropped. */
  let chosen = 0

  function show(next: Draft, changed?: HistoryEvent): void {
    draft = next
    fresh = changed
    queryTime.value = toField(draft.time)
    json.value = JSON.stringify(draft, null, 1)
    jsonError.hidden = true
    showUser({ draft, actions: model.actions, sample, fresh, onEdit, onRemove })
  }

  /** Another user: nothing of the rankings before is comparable. */
  function open(next: Draft, of: SampleUser | undefined): void {
    chosen++
    sample = of
    runs = []
    byId('outcome', HTMLElement).hidden = true
    hideProblem(problem)
    summary.textContent = 'Rank, then rank again: the second time the history’s K/V is cached.'
    if (typeof next.topK === 'number') topK.value = String(next.topK)
    show(next)
  }

  async function save(title: string, event: HistoryEvent, place: (e: HistoryEvent) => Draft) {
    const items = draft.candidates.map(itemOf)
    const saved = await askEvent({ title, event, actions: model.actions, items })
    if (saved !== undefined) show(place(saved), saved)
  }

  function onAdd(item: string): void {
    const event = { item, time: draft.time, actions: model.actions.slice(0, 1) }
    void save('Add event', event, (saved) => addEvent(draft, saved))
  }

  function onEdit(index: number): void {
    const event = draft.history[index]
    if (event === undefined) return
    void save('Edit event', event, (saved) => replaceEvent(draft, index, saved))
  }

  function onRemove(index: number): void {
    show(removeEvent(draft, index))
    byId('add-event', HTMLButtonElement).focus()
  }

  /** The draft with what the form beside the button says. */
  function request(): Draft {
    const { topK: _, weights: __, ...rest } = draft
    const k = topK.value.trim()
    const weights = weightsOf(model)
    return { ...rest, ...(k !== '' && { topK: Number(k) }), ...(weights && { weights }) }
  }

  async function rank(): Promise<void> {
    rankButton.disabled = true
    hideProblem(problem)
    const of = chosen
    try {
      const { answer, roundTripMs } = await postRank(request())
      if (of !== chosen) return
      const [last] = runs
      const before = last && new Map(last.answer.items.map(({ index }, place) => [index, place]))
      const run = { number: ++ranked, answer, roundTripMs }
      runs = [run, ...runs].slice(0, KEPT_RUNS)
      summary.textContent = summaryOf(run)
      byId('cache', HTMLElement).replaceChildren(...cacheView(runs))
      byId('time', HTMLElement).replaceChildren(...timeView(run))
      const items = itemsView({ answer, model, sample, before, onAdd })
      byId('items', HTMLElement).replaceChildren(...items)
      byId('outcome', HTMLElement).hidden = false
    } catch (error) {
      summary.textContent = 'Not ranked.'
      showProblem(problem, error)
    } finally {
      rankButton.disabled = false
    }
  }

  async function pick(name: string): Promise<void> {
    const of = ++chosen
    try {
      const found = name === '' ? undefined : await getSample(name)
      if (of !== chosen) return
      open(
        found === undefined ? exampleDraft(model, nowSec()) : readDraft(found.request, nowSec()),
        found,
      )
    } catch (error) {
      showProblem(problem, error)
    }
  }

  byId('rank-form', HTMLFormElement).addEventListener('submit', (event) => {
    event.preventDefault()
    if (!rankButton.disabled) void rank()
  })
  queryTime.addEventListener('change', () => {
    const time = fromField(queryTime.value)
    if (time !== undefined) show({ ...draft, time }, fresh)
  })
  byId('add-event', HTMLButtonElement).addEventListener('click', () => {
    onAdd(draft.candidates[0] === undefined ? '' : itemOf(draft.candidates[0]))
  })
  byId('json-form', HTMLFormElement).addEventListener('submit', (event) => {
    event.preventDefault()
    try {
      open(readDraft(JSON.parse(json.value), nowSec()), sample)
    } catch (error) {
      jsonError.textContent = error instanceof Error ? error.message : String(error)
      jsonError.hidden = false
    }
  })
  samplePicker.addEventListener('change', () => void pick(samplePicker.value))
  byId('shuffle', HTMLButtonElement).addEventListener('click', () => {
    const others = [...samplePicker.options].filter(
      ({ value, selected }) => value !== '' && !selected,
    )
    samplePicker.value = others[Math.floor(Math.random() * others.length)]?.value ?? ''
    void pick(samplePicker.value)
  })
  new ResizeObserver(() => showStrip(draft, kindsOf(draft.history, model.actions))).observe(
    byId('strip', HTMLElement),
  )
  showModel(model)
  showWeights(model)
  startCost(request)
  open(draft, undefined)
  void offerSamples().then(
    (first) => {
      if (first !== undefined && chosen === 1) void pick(first)
    },
    (error: unknown) => showProblem(problem, error),
  )
  rankButton.disabled = false
  byId('measure', HTMLButtonElement).disabled = false
}

/** Fills the list of sample users; the one to begin with, or undefined where the model has none. */
async function offerSamples(): Promise<string | undefined> {
  const samples = await getSamples()
  if (samples.length === 0) return undefined
  samplePicker.replaceChildren(
    ...samples.map(({ name, user, events, candidates }) =>
      el('option', { value: name }, `User ${user}: ${events} events, ${candidates} candidates`),
    ),
    el('option', { value: '' }, 'A generated example'),
  )
  byId('sample-row', HTMLElement).hidden = false
  byId('foot', HTMLElement).textContent =
    'Sample users are from KuaiRand (Gao et al., CIKM 2022), a subset, re-encoded, CC BY-SA 4.0. Nothing you enter leaves this server.'
  // One with something in it: events to look at, candidates that were really shown.
  const first =
    samples.find(({ events, shown }) => events >= 20 && events <= 60 && shown >= 3) ?? samples[0]
  samplePicker.value = first?.name ?? ''
  return first?.name
}

function showModel(model: Model): void {
  byId('model', HTMLElement).replaceChildren(
    el('b', {}, model.name),
    `@${model.version.slice(0, 8)} · ${model.engine} · ${model.precision} · micro-batches of ${model.microBatchSize} · at most ${digits(model.maxTokens)} tokens`,
  )
}

function showWeights(model: Model): void {
  byId('weights', HTMLElement).append(
    ...model.tasks.map(({ name }) =>
      el(
        'label',
        {},
        name,
        el('input', {
          id: `weight-${name}`,
          type: 'number',
          step: 'any',
          value: defaultWeight(model, name),
        }),
      ),
    ),
  )
}

/** The weights of the form; undefined while they are the bundle's own. */
function weightsOf(model: Model): Record<string, number> | undefined {
  const entries = model.tasks.map(({ name }) => {
    const { value } = byId(`weight-${name}`, HTMLInputElement)
    return [name, value === '' ? 0 : Number(value)] as const
  })
  const isOwn = entries.every(([name, value]) => value === defaultWeight(model, name))
  return isOwn ? undefined : Object.fromEntries(entries)
}

function defaultWeight({ weights }: Model, task: string): number {
  return weights === undefined ? 1 : (weights[task] ?? 0)
}

async function loaded(): Promise<Model> {
  const model = await getModel()
  if (model !== undefined) return model
  byId('model', HTMLElement).textContent = 'The model is still loading …'
  await new Promise((resolve) => window.setTimeout(resolve, LOADING_POLL_MS))
  return loaded()
}

const metrics = startMetrics()
startTabs((tab) => metrics.setVisible(tab === 'metrics'))
loaded().then(start, (error: unknown) => {
  byId('model', HTMLElement).textContent = 'The server does not answer.'
  showProblem(problem, error)
})
