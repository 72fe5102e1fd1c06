import type { Ranker } from '../../falcon/types.js'

/** `loading`: files and sessions; `warming`: verified, measured, first runs; `failed`: with a reason. */
export type ModelState = 'loading' | 'warming' | 'ready' | 'draining' | 'failed'

/** One bundle of a process, from the moment that it is to be loaded until nothing of it is left. */
export type Version = {
  readonly name: string
  /** Content hash of the bundle. */
  readonly version: string
  /** Where its bundle is, or was last. */
  folder: string
  state: ModelState
  /** Why it failed. */
  reason?: string
  /** From `ready` on. */
  ranker?: Ranker
  /** Rankings, prefetches and shadow rankings that use it now. */
  inFlight: number
  /** From `draining` on: resolves when nothing is left of it. */
  gone?: Promise<void>
  /** Called when `inFlight` falls to 0. */
  onIdle?: () => void
  /** Its folder is gone, or holds another bundle: it serves while a label needs it. */
  isOrphan: boolean
  /** When it got into this state, in milliseconds since the epoch. */
  sinceMs: number
}

/** The name that answers carry and that requests may ask for. */
export function idOf({ name, version }: { readonly name: string; readonly version: string }) {
  return `${name}@${version}`
}

/** A model in use: it stays loaded until `done` is called, exactly once. */
export type ModelLease = {
  /** `name@version` */
  readonly id: string
  readonly name: string
  readonly ranker: Ranker
  done(): void
}

/** @throws {TypeError} when it is not ready: whoever asks has to look */
export function leaseOf(version: Version): ModelLease {
  const { ranker, name } = version
  if (ranker === undefined) throw new TypeError(`${idOf(version)} is ${version.state}`)
  version.inFlight++
  return {
    id: idOf(version),
    name,
    ranker,
    done() {
      version.inFlight--
      if (version.inFlight === 0) version.onIdle?.()
    },
  }
}

/** Resolves when nothing uses the version any more; what begins to is the caller's to prevent. */
export function idle(version: Version): Promise<void> {
  if (version.inFlight === 0) return Promise.resolve()
  return new Promise((resolve) => {
    version.onIdle = resolve
  })
}

/** The version that ranks a share of a model's requests beside the one that answers. */
export type Shadow = {
  readonly id: string
  readonly sharePercent: number
  lease(): ModelLease
}
