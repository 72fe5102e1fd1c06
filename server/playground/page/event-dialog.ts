/// <reference lib="dom" />
import { byId, el } from './dom.js'
import type { HistoryEvent } from './draft.js'
import { fromField, toField } from './format.js'

export type EventForm = {
  readonly title: string
  readonly event: HistoryEvent
  readonly actions: readonly string[]
  /** Offered while typing. */
  readonly items: readonly string[]
}

const MAX_OFFERED = 200

/** Asks for an event; undefined when it was cancelled. Focus goes back to where it was. */
export function askEvent(form: EventForm): Promise<HistoryEvent | undefined> {
  const dialog = byId('event-dialog', HTMLDialogElement)
  const item = byId('event-item', HTMLInputElement)
  const time = byId('event-time', HTMLInputElement)
  const error = byId('event-error', HTMLElement)
  const { event, actions } = form
  byId('event-title', HTMLElement).textContent = form.title
  item.value = event.item
  time.value = toField(event.time)
  error.hidden = true
  byId('known-items', HTMLDataListElement).replaceChildren(
    ...form.items.slice(0, MAX_OFFERED).map((value) => el('option', { value })),
  )

  const observed = checkbox('observed', event.actions !== undefined)
  const boxes = actions.map((name) => checkbox(name, event.actions?.includes(name) ?? false))
  const showObserved = () => {
    for (const box of boxes) box.disabled = !observed.checked
  }
  observed.addEventListener('change', showObserved)
  showObserved()
  byId('event-actions', HTMLElement).replaceChildren(
    el('legend', {}, 'Actions'),
    el('label', {}, observed, 'what the user did is known'),
    ...boxes.map((box, i) => el('label', {}, box, actions[i])),
  )

  return new Promise((resolve) => {
    let saved: HistoryEvent | undefined
    const events = new AbortController()
    const { signal } = events
    byId('event-form', HTMLFormElement).addEventListener(
      'submit',
      (submit) => {
        const at = fromField(time.value)
        const name = item.value.trim()
        const missing = name === '' ? 'an item id' : at === undefined ? 'a time' : undefined
        if (missing !== undefined || at === undefined) {
          submit.preventDefault()
          error.textContent = `An event needs ${missing}.`
          error.hidden = false
          return
        }
        const { actions: _, features, ...rest } = event
        saved = {
          ...rest,
          item: name,
          time: at,
          ...(observed.checked && { actions: actions.filter((_, i) => boxes[i]?.checked) }),
          // Features belong to the item that they came with.
          ...(features !== undefined && name === event.item && { features }),
        }
      },
      { signal },
    )
    byId('event-cancel', HTMLButtonElement).addEventListener('click', () => dialog.close(), {
      signal,
    })
    dialog.addEventListener(
      'close',
      () => {
        events.abort()
        resolve(saved)
      },
      { signal },
    )
    dialog.showModal()
    item.focus()
    item.select()
  })
}

function checkbox(name: string, checked: boolean): HTMLInputElement {
  return el('input', { type: 'checkbox', name, checked })
}
