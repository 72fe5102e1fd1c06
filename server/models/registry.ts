import type { Ranker } from '../../falcon/types.js'
import { show } from '../../model/check.js'
import { RankError } from '../../model/errors.js'
import { type Family, promote, unlabel } from './family.js'
import { conflict, createLabels } from './labels.js'
import { expectedOf, resolve } from './resolve.js'
import { idle, idOf, leaseOf, type ModelLease, type Shadow, type Version } from './version.js'

/** A bundle that did not get as far as to say its name. */
export type Unreadable = {
  readonly folder: string
  readonly reason: string
  readonly sinceMs: number
}

export type ModelEvent =
  | { readonly kind: 'modelLoading' | 'modelGone' | 'modelOrphaned'; readonly model: string }
  | { readonly kind: 'modelReady'; readonly model: string; readonly tookMs: number }
  | { readonly kind: 'modelFailed'; readonly bundle: string; readonly reason: string }
  | { readonly kind: 'modelPromoted'; readonly model: string; readonly rampMs: number }

/** `isBackground`: others serve meanwhile. `onWarming`: to be called when the sessions are there. */
export type LoadHow = { readonly isBackground: boolean; readonly onWarming: () => void }

export type ModelsOptions = {
  /** What a folder holds. @throws {RankError} BUNDLE_INVALID */
  readonly peek: (folder: string) => { readonly name: string; readonly version: string }
  /** Loads a bundle and makes it ready. */
  readonly load: (folder: string, how: LoadHow) => Promise<Ranker>
  /** Versions at once, failed ones not counted. */
  readonly maxModels: number
  /** How long a promotion takes to move the users, where nothing else is said. */
  readonly rampMs: number
  /** What requests get that name no model; the first that is loaded when absent. */
  readonly defaultName?: string
  readonly onEvent?: (event: ModelEvent) => void
  /** Milliseconds since the epoch. */
  readonly nowMs?: () => number
}

export type Models = ReturnType<typeof createModels>

/** The models of a process: what is loaded, what it is called, what a request gets. */
export function createModels(options: ModelsOptions) {
  const { load, maxModels, rampMs, onEvent = () => {}, nowMs = Date.now } = options
  const families = new Map<string, Family>()
  const versions = new Set<Version>()
  const unreadable = new Map<string, Unreadable>()
  const timers = new Set<NodeJS.Timeout>()
  const removals = new Set<Promise<void>>()
  const goneListeners: ((id: string) => void)[] = []
  let defaultName = options.defaultName
  let isClosed = false
  /** One load at a time: a second would take twice the memory and be ready no sooner. */
  let lastLoad: Promise<unknown> = Promise.resolve()

  const versionsOf = (name: string) => [...versions].filter((version) => version.name === name)
  const setState = (version: Version, state: Version['state']) => {
    version.state = state
    version.sinceMs = nowMs()
  }
  const familyNamed = (name: string): Family => {
    const family = families.get(name)
    if (family !== undefined) return family
    const message = `no model ${show(name)}: expected ${expectedOf({ versions })}`
    throw new RankError('MODEL_NOT_FOUND', message)
  }
  const find = (name: string, version: string): Version => {
    const all = versionsOf(name)
    const found = all.find((each) => each.version === version)
    if (found !== undefined) return found
    const expected = all.length === 0 ? 'there is none' : all.map((v) => v.version).join(' or ')
    const message = `no version ${show(version)} of model ${show(name)}: expected ${expected}`
    throw new RankError('MODEL_NOT_FOUND', message)
  }

  /** @throws {RankError} CONFLICT for a stable version that requests still ask for */
  const checkMayGo = (version: Version): void => {
    if (families.get(version.name)?.stable !== version) return
    if (version.name === defaultName) {
      const message = `${idOf(version)} is stable and of the default model: promote another first`
      throw conflict(message)
    }
    const others = versionsOf(version.name).filter((v) => v !== version && v.state === 'ready')
    if (others.length === 0) return
    throw conflict(`${idOf(version)} is stable: promote ${others.map(idOf).join(' or ')} first`)
  }

  const drain = async (version: Version): Promise<void> => {
    // At the end of the process the server has waited for them, as long as it wanted to.
    if (!isClosed) await idle(version)
    try {
      await version.ranker?.close()
    } finally {
      versions.delete(version)
      if (versionsOf(version.name).length === 0) families.delete(version.name)
      for (const listener of goneListeners) listener(idOf(version))
      onEvent({ kind: 'modelGone', model: idOf(version) })
    }
  }
  /** Resolves when nothing is left of it; requests under way end on it first. */
  const remove = (version: Version): Promise<void> => {
    const family = families.get(version.name)
    if (family !== undefined) unlabel(family, version)
    setState(version, 'draining')
    const removal = drain(version)
    const settled = removal.catch(() => {}).finally(() => removals.delete(settled))
    removals.add(settled)
    version.gone = settled
    return removal
  }

  /** Lets go of what has no folder any more and no label either, when no ramp needs it. */
  const retireOrphans = (family: Family): void => {
    for (const version of versionsOf(family.name)) {
      const { stable, canary, shadow, ramp } = family
      const isLabelled = [stable, canary?.version, shadow?.version].includes(version)
      if (!version.isOrphan || version.state !== 'ready' || isLabelled) continue
      const waitMs = ramp?.from === version ? Math.max(0, ramp.startMs + ramp.tookMs - nowMs()) : 0
      const timer = setTimeout(() => {
        timers.delete(timer)
        if (version.state === 'ready') void remove(version).catch(() => {})
      }, waitMs)
      timers.add(timer)
    }
  }
  const labels = createLabels({
    ...{ familyNamed, find, rampMs, nowMs, onChange: retireOrphans },
    onPromoted: (version, tookMs) =>
      onEvent({ kind: 'modelPromoted', model: idOf(version), rampMs: tookMs }),
  })

  const start = async (version: Version): Promise<void> => {
    const startMs = performance.now()
    const id = idOf(version)
    onEvent({ kind: 'modelLoading', model: id })
    try {
      const isBackground = [...versions].some(({ state }) => state === 'ready')
      const onWarming = () => setState(version, 'warming')
      const ranker = await load(version.folder, { isBackground, onWarming })
      const got = idOf(ranker.model)
      if (got !== id) {
        await ranker.close()
        const message = `bundle ${version.folder} was ${id} and became ${got} meanwhile`
        throw new RankError('BUNDLE_INVALID', message)
      }
      version.ranker = ranker
    } catch (error) {
      version.reason = error instanceof Error ? error.message : String(error)
      setState(version, 'failed')
      onEvent({ kind: 'modelFailed', bundle: version.folder, reason: version.reason })
      throw error
    }
    setState(version, 'ready')
    defaultName ??= version.name
    const family = families.get(version.name) ?? { name: version.name }
    families.set(version.name, family)
    if (family.stable === undefined) promote(family, version, 0, nowMs())
    onEvent({ kind: 'modelReady', model: id, tookMs: Math.round(performance.now() - startMs) })
    retireOrphans(family)
  }

  /** Its folder is gone. */
  const abandon = (version: Version): void => {
    if (version.state === 'failed') versions.delete(version)
    if (version.isOrphan || version.state === 'failed' || version.state === 'draining') return
    version.isOrphan = true
    if (version.state !== 'ready') return
    try {
      checkMayGo(version)
    } catch {
      onEvent({ kind: 'modelOrphaned', model: idOf(version) })
      return
    }
    void remove(version).catch(() => {})
  }

  /** What stands in the folder. @throws {RankError} BUNDLE_INVALID, which is remembered */
  const peek = (folder: string) => {
    try {
      const found = options.peek(folder)
      unreadable.delete(folder)
      return found
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      unreadable.set(folder, { folder, reason, sinceMs: nowMs() })
      onEvent({ kind: 'modelFailed', bundle: folder, reason })
      throw error
    }
  }

  return {
    ...labels,
    /**
     * Loads a bundle: `version` is there at once, and serves when `ready` resolves. The first of its
     * name is stable.
     * @throws {RankError} BUNDLE_INVALID, CONFLICT where it is loaded already or too many are
     */
    load(folder: string): { readonly version: Version; readonly ready: Promise<void> } {
      const found = peek(folder)
      const same = versionsOf(found.name).find(({ version }) => version === found.version)
      if (same !== undefined && same.state !== 'failed') {
        throw conflict(`${idOf(same)} is ${same.state} already, from ${same.folder}`)
      }
      const loaded = [...versions].filter(({ state }) => state !== 'failed').length
      if (loaded >= maxModels) {
        throw conflict(`at most ${maxModels} versions are loaded at once: unload one first`)
      }
      if (same !== undefined) versions.delete(same)
      const common = { state: 'loading', inFlight: 0, isOrphan: false, sinceMs: nowMs() } as const
      const version: Version = { ...found, folder, ...common }
      versions.add(version)
      const ready = lastLoad.then(() => {
        if (isClosed) throw new RankError('NOT_READY', 'the server is closing')
        return start(version)
      })
      lastLoad = ready.catch(() => {})
      return { version, ready }
    },
    /**
     * No request gets the version any more; `gone` resolves when those under way have ended and
     * nothing is left of it.
     * @throws {RankError} MODEL_NOT_FOUND, CONFLICT
     */
    unload(name: string, version: string): { readonly gone: Promise<void> } {
      const found = find(name, version)
      if (found.state === 'failed') {
        versions.delete(found)
        return { gone: Promise.resolve() }
      }
      if (found.state !== 'ready') {
        throw conflict(`${idOf(found)} must be ready, it is ${found.state}`)
      }
      checkMayGo(found)
      return { gone: remove(found) }
    },
    /**
     * The bundle's folder is gone: its version goes when it may; a stable one that requests depend on
     * serves on until another is promoted.
     */
    orphan(folder: string): void {
      unreadable.delete(folder)
      for (const version of [...versions]) if (version.folder === folder) abandon(version)
    },
    /** The version stands where the folder's former one was: it takes over the labels. */
    replace(version: Version): void {
      // What came after it into the same folder, and still loads, is to follow it.
      const before = new Set([...versions].slice(0, [...versions].indexOf(version)))
      const isFormer = (each: Version) => each.folder === version.folder && before.has(each)
      for (const each of [...before].filter(isFormer)) {
        if (each.name === version.name) each.isOrphan = true
        else abandon(each)
      }
      labels.takeOver(familyNamed(version.name), version, isFormer)
    },
    /** The bundle of a version that is loaded stands in this folder now: the last that came there. */
    move(version: Version, folder: string): void {
      versions.delete(version)
      versions.add(version)
      version.folder = folder
      version.isOrphan = false
      // Whoever goes back to it while another still loads there does not want that one any more.
      const others = [...versions].filter((each) => each.folder === folder && each !== version)
      for (const each of others) if (each.state !== 'ready') each.isOrphan = true
    },
    /**
     * The model that a request gets, held until `done`.
     * @throws {RankError} MODEL_NOT_FOUND, NOT_READY
     */
    lease: (asked: string | undefined, userId: string): ModelLease =>
      leaseOf(resolve({ families, versions, defaultName }, asked, userId, nowMs())),
    shadowOf(name: string): Shadow | undefined {
      const { version, sharePercent } = families.get(name)?.shadow ?? {}
      if (version === undefined || sharePercent === undefined) return undefined
      return { id: idOf(version), sharePercent, lease: () => leaseOf(version) }
    },
    defaultName: () => defaultName,
    /** The default model's stable version. */
    ranker: (): Ranker | undefined => families.get(defaultName ?? '')?.stable?.ranker,
    families: (): readonly Family[] => [...families.values()],
    /** All versions, the default model's stable one first, then by name. */
    versions(): readonly Version[] {
      const rank = (v: Version) =>
        (v.name === defaultName ? 0 : 2) + (families.get(v.name)?.stable === v ? 0 : 1)
      return [...versions].sort((a, b) => rank(a) - rank(b) || (idOf(a) < idOf(b) ? -1 : 1))
    },
    unreadable: (): readonly Unreadable[] => [...unreadable.values()],
    /** Told the id of each version of which nothing is left. */
    onGone: (listener: (id: string) => void) => void goneListeners.push(listener),
    /** Waits for the load under way, then closes everything. */
    async close(): Promise<void> {
      isClosed = true
      for (const timer of timers) clearTimeout(timer)
      await lastLoad
      for (const { onIdle } of versions) onIdle?.()
      await Promise.all([...versions].filter(({ state }) => state === 'ready').map(remove))
      await Promise.all(removals)
    },
  }
}
