import { hash } from 'node:crypto'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'

/** Tokens per link of a digest chain. */
export const PAGE_TOKENS = 64

/**
 * SHA-256 chain over history tokens: `pages[i]` covers tokens [0, (i+1)·64), `whole` all of them.
 * Two histories with an equal digest at some length have equal tokens, rows and times up to there.
 */
export type DigestChain = {
  readonly tokens: number
  readonly pages: readonly string[]
  readonly whole: string
}

export function digestChain(tokens: HistoryTokens): DigestChain {
  const pages: string[] = []
  const full = Math.floor(tokens.length / PAGE_TOKENS)
  for (let page = 0; page < full; page++) {
    pages.push(link(pages[page - 1] ?? '', tokens, page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS))
  }
  return { tokens: tokens.length, pages, whole: digestAt(tokens, pages, tokens.length) }
}

/** Digest of the first `length` tokens, given the chain's pages. */
export function digestAt(tokens: HistoryTokens, pages: readonly string[], length: number): string {
  const page = Math.floor(length / PAGE_TOKENS)
  const before = page === 0 ? '' : (pages[page - 1] ?? '')
  return link(before, tokens, page * PAGE_TOKENS, length)
}

/**
 * How many of `cached`'s tokens are also the first tokens of this history: all that `cached` covers
 * when it is a prefix, else the common pages.
 */
export function coveredTokens(
  cached: DigestChain,
  tokens: HistoryTokens,
  chain: DigestChain,
): number {
  if (cached.tokens <= tokens.length) {
    if (digestAt(tokens, chain.pages, cached.tokens) === cached.whole) return cached.tokens
  }
  let common = 0
  while (common < chain.pages.length && chain.pages[common] === cached.pages[common]) common++
  return common * PAGE_TOKENS
}

/** Bytes of the page that is being hashed: one call per page costs half of one per array. */
let scratch = Buffer.alloc(0)

function link(before: string, tokens: HistoryTokens, start: number, end: number): string {
  const { rows, actions, times } = sliceTokens(tokens, start, end)
  const bytes = before.length + rows.byteLength + actions.byteLength + times.byteLength
  if (scratch.length < bytes) scratch = Buffer.alloc(bytes)
  let filled = scratch.write(before, 'latin1')
  for (const { buffer, byteOffset, byteLength } of [rows, actions, times]) {
    scratch.set(new Uint8Array(buffer, byteOffset, byteLength), filled)
    filled += byteLength
  }
  return hash('sha256', scratch.subarray(0, filled), 'base64')
}
