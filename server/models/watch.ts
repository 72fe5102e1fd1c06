import type { Dirent } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { MANIFEST_FILE } from '../../model/manifest.js'

export type WatchOptions = {
  readonly folder: string
  /** In which order bundles that are new at the same look are told. */
  readonly order: (folders: readonly string[]) => readonly string[]
  /** A subfolder holds a bundle that it did not hold before, and nothing in it changes any more. */
  readonly onBundle: (folder: string, isReplacement: boolean) => void
  /** A subfolder that held one is gone. */
  readonly onGone: (folder: string) => void
  /** The folder cannot be read, or can be again. */
  readonly onFault: (fault: string | undefined) => void
}

type Seen = {
  /** Names, sizes and times of all files, at the last look. */
  print: string
  /** Those of the bundle that was told; none before. */
  told: string | undefined
  /** Looks in a row that did not find it. */
  missing: number
}

export type Watch = ReturnType<typeof createWatch>

/**
 * Watches a folder of bundles by looking: file systems that containers mount seldom tell of changes. A
 * bundle counts when it has a manifest and was the same at two looks, so that one that is being copied
 * is left alone; one at the first look counts at once, for there is nothing to compare with. Folders
 * whose name begins with a dot or has `.tmp-` in it are somebody's work under way.
 */
export function createWatch({ folder, order, onBundle, onGone, onFault }: WatchOptions) {
  const seen = new Map<string, Seen>()
  let isFirst = true
  let fault: string | undefined

  const say = (next: string | undefined) => {
    if (next !== fault) onFault(next)
    fault = next
  }
  const look = async (): Promise<void> => {
    let entries: Dirent[]
    try {
      entries = await readdir(folder, { withFileTypes: true })
      say(undefined)
    } catch (error) {
      // A folder that cannot be read for a moment must not cost all models.
      say(error instanceof Error ? error.message : String(error))
      return
    }
    const names = entries
      .map(({ name }) => name)
      .filter(isBundleName)
      .sort()
    const prints = new Map<string, string>()
    for (const name of names) {
      const path = resolve(folder, name)
      const print = await printOf(path)
      if (print !== undefined) prints.set(path, print)
    }
    for (const path of order([...prints.keys()])) {
      const print = prints.get(path) ?? ''
      const before = seen.get(path)
      const entry = before ?? { print: '', told: undefined, missing: 0 }
      const isSettled = isFirst || entry.print === print
      entry.print = print
      entry.missing = 0
      seen.set(path, entry)
      if (!isSettled || entry.told === print) continue
      const isReplacement = entry.told !== undefined
      entry.told = print
      onBundle(path, isReplacement)
    }
    for (const [path, entry] of seen) {
      if (prints.has(path)) continue
      // Once is not enough: a folder is replaced by two renames.
      if (++entry.missing < 2) continue
      seen.delete(path)
      if (entry.told !== undefined) onGone(path)
    }
    isFirst = false
  }

  return {
    /** Looks once. */
    look,
  }
}

function isBundleName(name: string): boolean {
  return !name.startsWith('.') && !name.includes('.tmp-')
}

/** Undefined where there is no bundle, or not yet. */
async function printOf(folder: string): Promise<string | undefined> {
  try {
    const manifest = await stat(join(folder, MANIFEST_FILE))
    if (!manifest.isFile()) return undefined
    const files = await readdir(folder, { recursive: true })
    const parts = await Promise.all(
      files.sort().map(async (file) => {
        const { ino, size, mtimeMs } = await stat(join(folder, file))
        return `${file} ${ino} ${size} ${mtimeMs}`
      }),
    )
    return parts.join('\n')
  } catch {
    return undefined
  }
}
