import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { extname } from 'node:path'

/** A file of the page, ready to be sent. */
export type Asset = { readonly type: string; readonly etag: string; readonly body: Buffer }

const TYPES = new Map([
  ['.html', 'text/html; charset=utf-8'],
  ['.css', 'text/css; charset=utf-8'],
  ['.js', 'text/javascript; charset=utf-8'],
  ['.svg', 'image/svg+xml'],
])

/** Where tsc puts the page's modules, and where its other files lie: tsc copies none. */
const MODULES = new URL('page/', import.meta.url)
const STATIC = new URL('../../../server/playground/page/', import.meta.url)

/**
 * The files of the page by name, read once. What is not in here is not served, so no path of a
 * request ever reaches the file system.
 */
export function readAssets(): ReadonlyMap<string, Asset> {
  const isModule = (name: string) => name.endsWith('.js') && !name.endsWith('.test.js')
  const isStatic = (name: string) => TYPES.has(extname(name)) && !name.endsWith('.js')
  const found = [
    ...readdirSync(MODULES)
      .filter(isModule)
      .map((name) => [name, MODULES] as const),
    ...readdirSync(STATIC)
      .filter(isStatic)
      .map((name) => [name, STATIC] as const),
  ]
  return new Map(
    found.map(([name, folder]) => [
      name,
      asset(TYPES.get(extname(name)) ?? '', readFileSync(new URL(name, folder))),
    ]),
  )
}

/** `body` under a strong validator. */
export function asset(type: string, body: Buffer): Asset {
  const hash = createHash('sha256').update(body).digest('base64url').slice(0, 22)
  return { type, etag: `"${hash}"`, body }
}
