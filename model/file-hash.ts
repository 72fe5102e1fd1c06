// Imports Node's own modules alone: a thread that hashes (hash-worker.ts) then starts in a tenth of the time.
import { createHash } from 'node:crypto'
import { closeSync, openSync, readSync, statSync } from 'node:fs'

const CHUNK_BYTES = 4 * 2 ** 20

export type ExpectedFile = { readonly path: string; readonly bytes: number }

/** What was found of it: its SHA-256 in hex only where its size is the expected one. */
export type FoundFile =
  | { readonly kind: 'file'; readonly bytes: number; readonly sha256?: string }
  | { readonly kind: 'none' }
  | { readonly kind: 'unreadable'; readonly why: string }

export function inspectFile({ path, bytes }: ExpectedFile): FoundFile {
  try {
    const stat = statSync(path, { throwIfNoEntry: false })
    if (!stat?.isFile()) return { kind: 'none' }
    const found = { kind: 'file', bytes: stat.size } as const
    return stat.size === bytes ? { ...found, sha256: hashFile(path) } : found
  } catch (error) {
    return { kind: 'unreadable', why: error instanceof Error ? error.message : String(error) }
  }
}

/** SHA-256 of a file in hex, read in chunks. */
export function hashFile(file: string): string {
  const hash = createHash('sha256')
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES)
  const fd = openSync(file, 'r')
  try {
    for (let got = readSync(fd, chunk); got > 0; got = readSync(fd, chunk)) {
      hash.update(chunk.subarray(0, got))
    }
  } finally {
    closeSync(fd)
  }
  return hash.digest('hex')
}
