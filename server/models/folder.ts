import { readFile, rename, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { RankError } from '../../model/errors.js'
import { LABELS_FILE, labelsText, parseLabels, type WantedLabels } from './labels-file.js'
import { peekBundle } from './peek.js'
import type { Models } from './registry.js'
import { idOf } from './version.js'
import { createWatch } from './watch.js'

export type ModelsFolderOptions = {
  readonly folder: string
  readonly models: Models
  readonly onFault: (fault: string) => void
}

export type ModelsFolder = ReturnType<typeof createModelsFolder>

/**
 * A folder of bundles, and a file in it that says which are stable, canary and shadow: the models of
 * this process, and of all that share the folder, follow both.
 */
export function createModelsFolder({ folder, models, onFault }: ModelsFolderOptions) {
  const labelsFile = join(folder, LABELS_FILE)
  let wanted: WantedLabels = {}
  /** Of the labels file, as it was read or written last. */
  let text: string | undefined
  let onLoad: ((loading: Promise<void>) => void) | undefined
  /** Folders that went back to a version which is on its way out. */
  const waiting = new Set<string>()

  const load = async (bundle: string, isReplacement: boolean): Promise<void> => {
    waiting.delete(bundle)
    try {
      const { version, ready } = models.load(bundle)
      await ready
      if (isReplacement) models.replace(version)
      apply()
    } catch (error) {
      // Others are in the list of models, with their reason.
      if (!(error instanceof RankError) || error.code !== 'CONFLICT') return
      const { state, gone } = sameAs(bundle) ?? {}
      if (state !== 'draining') return take(bundle, error.message)
      waiting.add(bundle)
      await gone
      // What came into the folder meanwhile is what it wants now.
      if (waiting.has(bundle)) await load(bundle, isReplacement)
    }
  }
  /** The version of what stands in the folder. */
  const sameAs = (bundle: string) => {
    const id = idOf(tryPeek(bundle))
    return models.versions().find((each) => idOf(each) === id)
  }
  /** What is loaded already may have been moved here. */
  const take = (bundle: string, why: string) => {
    const same = sameAs(bundle)
    if (same === undefined) onFault(`${bundle} is not loaded: ${why}`)
    else models.move(same, bundle)
  }

  const watch = createWatch({
    folder,
    onBundle(bundle, isReplacement) {
      const loading = load(bundle, isReplacement)
      if (onLoad === undefined) void loading
      else onLoad(loading)
    },
    /** What shall be stable is loaded first. */
    order: (bundles) => {
      const isWanted = (bundle: string) => {
        const { name, version } = tryPeek(bundle)
        return Object.hasOwn(wanted, name) && wanted[name]?.stable === version
      }
      return [...bundles.filter(isWanted), ...bundles.filter((bundle) => !isWanted(bundle))]
    },
    onGone(bundle) {
      waiting.delete(bundle)
      models.orphan(bundle)
    },
    onFault: (fault) => fault !== undefined && onFault(fault),
  })

  /** Brings the labels to what is wanted, as far as it is loaded. */
  const apply = () => {
    for (const { name, stable, canary, shadow } of models.families()) {
      const labels = Object.hasOwn(wanted, name) ? wanted[name] : undefined
      if (labels === undefined) continue
      const isReady = (version: string) =>
        models
          .versions()
          .some((v) => v.name === name && v.version === version && v.state === 'ready')
      const next = labels.stable
      if (next !== undefined && next !== stable?.version && isReady(next)) {
        models.promote(name, next)
      }
      const { version, weightPercent } = labels.canary ?? {}
      if (version === undefined || weightPercent === undefined) {
        if (canary !== undefined) models.clearCanary(name)
      } else if (isReady(version) && version !== next) {
        models.setCanary(name, version, weightPercent)
      }
      const { version: shadowed, sharePercent } = labels.shadow ?? {}
      if (shadowed === undefined || sharePercent === undefined) {
        if (shadow !== undefined) models.clearShadow(name)
      } else if (isReady(shadowed) && shadowed !== next) {
        models.setShadow(name, shadowed, sharePercent)
      }
    }
  }

  const readLabels = async (): Promise<void> => {
    const found = await readFile(labelsFile, 'utf8').catch(() => undefined)
    if (found === undefined || found === text) return
    text = found
    try {
      wanted = parseLabels(found, labelsFile)
      apply()
    } catch (error) {
      onFault(error instanceof Error ? error.message : String(error))
    }
  }

  const look = async (): Promise<void> => {
    await readLabels()
    await watch.look()
  }
  let timer: NodeJS.Timeout | undefined

  return {
    folder: resolve(folder),
    /** Looks for the first time; resolves when all that is there is ready, or failed. */
    async open(): Promise<void> {
      const loads: Promise<void>[] = []
      onLoad = (loading) => loads.push(loading)
      await look()
      onLoad = undefined
      await Promise.all(loads)
    },
    /** Looks once. */
    look,
    /** Looks again and again, `everyMs` after the look before ended. */
    start(everyMs: number): void {
      const again = () => {
        timer = setTimeout(() => void look().finally(() => timer && again()), everyMs)
        timer.unref()
      }
      again()
    },
    stop(): void {
      clearTimeout(timer)
      timer = undefined
    },
    /** Writes the labels of now, for the next start and for whoever shares the folder. */
    async save(): Promise<void> {
      const now = labelsText(models.families())
      wanted = parseLabels(now, labelsFile)
      if (now === text) return
      text = now
      try {
        await writeFile(`${labelsFile}.tmp-${process.pid}`, now)
        await rename(`${labelsFile}.tmp-${process.pid}`, labelsFile)
      } catch (error) {
        onFault(`labels are not kept: ${error instanceof Error ? error.message : String(error)}`)
      }
    },
  }
}

function tryPeek(bundle: string): { readonly name: string; readonly version: string } {
  try {
    return peekBundle(bundle)
  } catch {
    return { name: '', version: '' }
  }
}
