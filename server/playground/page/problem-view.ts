/// <reference lib="dom" />
import { Problem } from './api.js'
import { el } from './dom.js'

/** Shows an error as the service gave it: code, message, and the path of the fault in the request. */
export function showProblem(box: HTMLElement, error: unknown): void {
  const { code, message, path } = error instanceof Problem ? error : foreign(error)
  box.replaceChildren(
    el('b', {}, code),
    el('div', {}, message),
    ...(path === undefined ? [] : [el('div', {}, 'at ', el('code', {}, path === '' ? '/' : path))]),
  )
  box.hidden = false
}

export function hideProblem(box: HTMLElement): void {
  box.hidden = true
  box.replaceChildren()
}

function foreign(error: unknown): { code: string; message: string; path?: string } {
  return { code: 'PAGE', message: error instanceof Error ? error.message : String(error) }
}
