import type { Ranker } from '../../falcon/types.js'
import { labelsOf } from './family.js'
import type { Models } from './registry.js'
import { resolve } from './resolve.js'
import {
  idOf,
  leaseOf,
  type ModelLease,
  type ModelState,
  type Shadow,
  type Version,
} from './version.js'

/** A version that answers requests, or did until it began to drain. */
export type LoadedModel = {
  readonly id: string
  readonly ranker: Ranker
  readonly state: ModelState
  readonly labels: readonly string[]
}

/** What the routes need of the models. */
export type ModelSource = {
  /** @throws {RankError} MODEL_NOT_FOUND, NOT_READY */
  lease(asked: string | undefined, userId: string): ModelLease
  shadowOf(name: string): Shadow | undefined
  /** What a request without `model` gets comes first. */
  loaded(): readonly LoadedModel[]
  /** Told the id of each version of which nothing is left. */
  onGone(listener: (id: string) => void): void
}

export function sourceOf(models: Models): ModelSource {
  const { lease, shadowOf, onGone } = models
  return {
    ...{ lease, shadowOf, onGone },
    loaded() {
      const families = new Map(models.families().map((family) => [family.name, family]))
      return models.versions().flatMap((version) => {
        const { ranker, state } = version
        const family = families.get(version.name)
        const labels = family === undefined ? [] : labelsOf(family, version)
        return ranker === undefined ? [] : [{ id: idOf(version), ranker, state, labels }]
      })
    },
  }
}

/** One ranker that never changes, once it is there. */
export function singleModel(ranker: () => Ranker | undefined): ModelSource {
  let version: Version | undefined
  const known = () => {
    const found = ranker()
    if (found !== undefined && found !== version?.ranker) {
      const { name, version: hash } = found.model
      const common = {
        folder: '',
        state: 'ready',
        inFlight: 0,
        isOrphan: false,
        sinceMs: 0,
      } as const
      version = { name, version: hash, ranker: found, ...common }
    }
    return version
  }
  return {
    lease(asked, userId) {
      const only = known()
      const families = new Map(only && [[only.name, { name: only.name, stable: only }]])
      const versions = only === undefined ? [] : [only]
      return leaseOf(resolve({ families, versions, defaultName: only?.name }, asked, userId, 0))
    },
    shadowOf: () => undefined,
    loaded() {
      const found = ranker()
      const only = known()
      if (found === undefined || only === undefined) return []
      return [{ id: idOf(only), ranker: found, state: 'ready', labels: ['stable'] }]
    },
    onGone() {},
  }
}
