/// <reference lib="dom" />
// The one place that makes elements. Text goes in as text nodes: nothing is ever parsed as HTML.

export type Child = Node | string | undefined

type Listener = (event: Event) => void
export type Attributes = {
  readonly [name: string]: string | number | boolean | undefined | Listener
}

const SVG = 'http://www.w3.org/2000/svg'

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag)
  fill(node, attributes, children)
  return node
}

export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: readonly Child[]
): SVGElementTagNameMap[K] {
  const node = document.createElementNS(SVG, tag)
  fill(node, attributes, children)
  return node
}

/** The element of that id and kind, which index.html has. */
export function byId<T extends Element>(id: string, kind: { new (): T; prototype: T }): T {
  const found = document.getElementById(id)
  if (found instanceof kind) return found
  throw new Error(`#${id} must be ${kind.name}, got ${found?.constructor.name ?? 'nothing'}`)
}

/** A functions value listens to the event of that name; true is an attribute without a value. */
function fill(node: Element, attributes: Attributes, children: readonly Child[]): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value)
    else if (value === true) node.setAttribute(name, '')
    else if (value !== undefined && value !== false) node.setAttribute(name, String(value))
  }
  node.append(...children.filter((child) => child !== undefined))
}
