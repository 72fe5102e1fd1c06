/// <reference lib="dom" />
import { byId } from './dom.js'

/** The API key, kept as long as the tab is open, and nowhere else. */

const NAME = 'peregrine-key'

/** One question at a time: requests that are refused together wait for the same answer. */
let asking: Promise<boolean> | undefined
/** The metrics tab asks every few seconds: no is no until the page is loaded anew. */
let isLeft = false

export function storedKey(): string | undefined {
  return sessionStorage.getItem(NAME) ?? undefined
}

/**
 * Asks for another key than `refused`, the one that the server did not take. True when there is one:
 * worth a second try; false when the dialog was left.
 */
export function askKey(refused: string | undefined): Promise<boolean> {
  if (storedKey() !== refused) return Promise.resolve(true)
  if (isLeft) return Promise.resolve(false)
  asking ??= show(refused !== undefined).finally(() => {
    asking = undefined
  })
  return asking
}

function show(wasRefused: boolean): Promise<boolean> {
  const dialog = byId('key-dialog', HTMLDialogElement)
  const field = byId('key', HTMLInputElement)
  byId('key-error', HTMLElement).hidden = !wasRefused
  field.value = ''
  return new Promise((resolve) => {
    const ended = new AbortController()
    const { signal } = ended
    const end = (isGiven: boolean) => {
      isLeft = !isGiven
      ended.abort()
      dialog.close()
      resolve(isGiven)
    }
    byId('key-form', HTMLFormElement).addEventListener(
      'submit',
      (event) => {
        event.preventDefault()
        sessionStorage.setItem(NAME, field.value.trim())
        field.value = ''
        end(true)
      },
      { signal },
    )
    byId('key-cancel', HTMLButtonElement).addEventListener('click', () => end(false), { signal })
    dialog.addEventListener('cancel', () => end(false), { signal })
    dialog.showModal()
  })
}
