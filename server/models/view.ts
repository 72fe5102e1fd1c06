import { type Family, labelsByHash, labelsOf, movedPercent } from './family.js'
import type { Models } from './registry.js'
import type { Version } from './version.js'

/** A model as the admin API shows it. */
export function modelView(models: Models, name: string, nowMs: number) {
  const family: Family = models.families().find((each) => each.name === name) ?? { name }
  const { former, ramp } = family
  const moved = ramp === undefined ? 100 : movedPercent(ramp, nowMs)
  return {
    name,
    isDefault: models.defaultName() === name,
    ...labelsByHash(family),
    ...(former && { former: former.version }),
    ...(moved < 100 && { movedPercent: moved }),
    versions: models
      .versions()
      .filter((version) => version.name === name)
      .map((version) => versionView(family, version)),
  }
}

function versionView(family: Family, version: Version) {
  const { state, reason, folder, isOrphan, inFlight, ranker, sinceMs } = version
  return {
    version: version.version,
    state,
    ...(reason !== undefined && { reason }),
    labels: labelsOf(family, version),
    bundle: folder,
    isOrphan,
    inFlight,
    ...(ranker !== undefined && { kvBytes: ranker.stats().cache.kvBytes }),
    since: new Date(sinceMs).toISOString(),
  }
}

/** All models as the admin API shows them, the default first. */
export function modelsView(models: Models, nowMs: number) {
  const names = new Set(models.versions().map(({ name }) => name))
  return {
    models: [...names].map((name) => modelView(models, name, nowMs)),
    unreadable: models.unreadable().map(({ folder, reason, sinceMs }) => ({
      bundle: folder,
      reason,
      since: new Date(sinceMs).toISOString(),
    })),
  }
}
