// Imports Node's own modules alone: a thread that hashes (hash-worker.ts) then starts in a tenth of the time.
import { createHash } from 'node:crypto'
import { closeSync, openSync, readSync, statSync } from 'node:fs'

const CHUNK_BYTES = 4 * 2 ** 20

export type ExpectedFile = { readonly path: string; readonly bytes: number }

/** What was found of it: its SHA-256 in hex only where it could be all right. */
export type FoundFile =
  | { readonly kind: 'file'; readonly bytes: number; readonly sha256?: string }
  | { readonly kind: 'none' }
  | { readonly kind: 'unreadable'; readonly why: string }

/** In the same order; hashed only where all are there in their sizes: tables of gigabytes are not read for nothing. */
export function inspectFiles(files: readonly ExpectedFile[]): FoundFile[] {
  const found = files.map(({ path }) => inspect(path))
  const isWhole = files.every(({ bytes }, i) => {
    const each = found[i]
    return each?.kind === 'file' && each.bytes === bytes
  })
  return isWhole ? files.map(({ path }) => inspect(path, hashFile)) : found
}

function inspect(path: string, hash?: (path: string) => string): FoundFile {
  try {
    const stat = statSync(path, { throwIfNoEntry: false })
    if (!stat?.isFile()) return { kind: 'none' }
    return { kind: 'file', bytes: stat.size, ...(hash && { sha256: hash(path) }) }
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
