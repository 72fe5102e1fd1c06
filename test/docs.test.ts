import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { posix } from 'node:path'
import { describe, test } from 'node:test'

const NOT_OURS = new Set(['node_modules', 'dist', 'bundles', 'kernels'])

/** Markdown files of the project, by their path from its root. */
const pages = readdirSync('.', { withFileTypes: true })
  .filter(({ name }) => !name.startsWith('.') && !NOT_OURS.has(name))
  .flatMap((entry) =>
    entry.isDirectory()
      ? readdirSync(entry.name, { recursive: true, encoding: 'utf8' }).map((file) =>
          posix.join(entry.name, file),
        )
      : [entry.name],
  )
  .filter((file) => file.endsWith('.md'))

/** The anchors that GitHub gives the headings of a page. */
function anchorsOf(markdown: string): Set<string> {
  const headings = [...markdown.matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) => heading)
  return new Set(
    headings.map((heading) =>
      heading
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    ),
  )
}

/** The links of `page` that lead nowhere in this repository. */
function brokenLinks(page: string): string[] {
  const text = readFileSync(page, 'utf8')
  return [...text.matchAll(/\]\((?![a-z]+:)([^)\s]*)\)/g)].flatMap(([, link = '']) => {
    const [path = '', anchor] = link.split('#')
    const target = path === '' ? page : posix.join(posix.dirname(page), path)
    if (!existsSync(target)) return [`${page}: ${link} is not there`]
    const isKnown = anchor === undefined || anchorsOf(readFileSync(target, 'utf8')).has(anchor)
    return isKnown ? [] : [`${page}: ${link} names no heading`]
  })
}

describe('the documentation', () => {
  test('has pages to be checked', () => {
    assert.ok(pages.includes('README.md') && pages.includes('docs/operating.md'), String(pages))
  })

  test('has no link that leads nowhere', () => {
    assert.deepEqual(pages.flatMap(brokenLinks), [])
  })
})
