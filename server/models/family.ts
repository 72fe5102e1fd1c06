import { shortHash } from '../../cache/key.js'
import type { Version } from './version.js'

/** All versions of one name: which requests go where. */
export type Family = {
  readonly name: string
  stable?: Version
  /** What was stable before: where a rollback leads. */
  former?: Version
  /** Users move from the former stable version to the new one over some time. */
  ramp?: Ramp
  canary?: { readonly version: Version; readonly weightPercent: number }
  shadow?: { readonly version: Version; readonly sharePercent: number }
}

type Ramp = {
  readonly from: Version
  readonly startMs: number
  readonly tookMs: number
  /** Of users that were at the new version when it began, as its canaries. */
  readonly firstPercent: number
}

const BUCKETS = 2 ** 32

/**
 * Where a user stands among those of a model, in [0, 100). Always the same, on every replica: who is
 * below a canary's weight stays below a larger one, and finds the K/V that was made there.
 */
export function percentOf(name: string, userId: string): number {
  const bytes = Buffer.from(shortHash(`${name}\n${userId}`), 'base64url')
  return (100 * bytes.readUInt32BE()) / BUCKETS
}

/** The version that answers a user who asks for the name alone; undefined without a stable one. */
export function versionFor(family: Family, userId: string, nowMs: number): Version | undefined {
  const { stable, canary, ramp } = family
  const moved = ramp === undefined ? 100 : movedPercent(ramp, nowMs)
  if (moved >= 100) delete family.ramp
  const weight = canary?.weightPercent ?? 0
  if (weight === 0 && moved >= 100) return stable
  const percent = percentOf(family.name, userId)
  if (canary !== undefined && percent < weight) return canary.version
  return ramp === undefined || percent < moved ? stable : ramp.from
}

/** Percent of the users at the new version. */
export function movedPercent({ startMs, tookMs, firstPercent }: Ramp, nowMs: number): number {
  if (nowMs >= startMs + tookMs) return 100
  return firstPercent + ((100 - firstPercent) * (nowMs - startMs)) / tookMs
}

/** Makes a version stable, at once for whoever asks for `name@stable`, over `rampMs` for the others. */
export function promote(family: Family, version: Version, rampMs: number, nowMs: number): void {
  const { stable: from, canary } = family
  if (from === version) return
  const firstPercent = canary?.version === version ? canary.weightPercent : 0
  family.stable = version
  delete family.ramp
  if (from !== undefined) {
    family.former = from
    if (rampMs > 0) family.ramp = { from, startMs: nowMs, tookMs: rampMs, firstPercent }
  }
  if (family.canary?.version === version) delete family.canary
  if (family.shadow?.version === version) delete family.shadow
}

/** Takes every label from a version. */
export function unlabel(family: Family, version: Version): void {
  if (family.stable === version) delete family.stable
  if (family.former === version) delete family.former
  if (family.ramp?.from === version) delete family.ramp
  if (family.canary?.version === version) delete family.canary
  if (family.shadow?.version === version) delete family.shadow
}

/** As lists show them. */
export function labelsOf(family: Family, version: Version): string[] {
  return (['stable', 'canary', 'shadow'] as const).filter((label) => {
    const labelled = family[label]
    return (
      labelled === version || (labelled && 'version' in labelled && labelled.version === version)
    )
  })
}

/** Which versions the labels of a family are on, by their hashes. */
export function labelsByHash({ stable, canary, shadow }: Family) {
  return {
    ...(stable && { stable: stable.version }),
    ...(canary && {
      canary: { version: canary.version.version, weightPercent: canary.weightPercent },
    }),
    ...(shadow && {
      shadow: { version: shadow.version.version, sharePercent: shadow.sharePercent },
    }),
  }
}
