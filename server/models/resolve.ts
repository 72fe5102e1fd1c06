import { show } from '../../model/check.js'
import { RankError } from '../../model/errors.js'
import { type Family, versionFor } from './family.js'
import { idOf, type Version } from './version.js'

export type Known = {
  readonly families: ReadonlyMap<string, Family>
  readonly versions: Iterable<Version>
  /** Of the model that requests get which name none. */
  readonly defaultName: string | undefined
}

/**
 * The version that a request gets: of the default model, of `name`, `name@stable`, `name@canary` or
 * `name@version`.
 * @throws {RankError} MODEL_NOT_FOUND, or NOT_READY where the model is on its way
 */
export function resolve(
  known: Known,
  asked: string | undefined,
  userId: string,
  nowMs: number,
): Version {
  const [name = known.defaultName, which] = asked === undefined ? [] : splitAt(asked)
  const family = name === undefined ? undefined : known.families.get(name)
  const found = family && pick(known, family, which, userId, nowMs)
  if (found !== undefined) return found
  const isComing = [...known.versions].some(
    (version) => version.name === name && ['loading', 'warming'].includes(version.state),
  )
  if (asked === undefined || (which === undefined && isComing)) {
    throw new RankError('NOT_READY', 'the model is still loading; see /readyz')
  }
  const message = `no model ${show(asked)}: expected ${expectedOf(known)}`
  throw new RankError('MODEL_NOT_FOUND', message, { path: '/model' })
}

function pick(
  { versions }: Known,
  family: Family,
  which: string | undefined,
  userId: string,
  nowMs: number,
): Version | undefined {
  switch (which) {
    case undefined:
      return versionFor(family, userId, nowMs)
    case 'stable':
      return family.stable
    case 'canary':
      return family.canary?.version
  }
  return [...versions].find(
    ({ name, version, state }) => name === family.name && version === which && state === 'ready',
  )
}

function splitAt(asked: string): [name: string, which: string | undefined] {
  const at = asked.indexOf('@')
  return at === -1 ? [asked, undefined] : [asked.slice(0, at), asked.slice(at + 1)]
}

/** Names and versions that a request may ask for. */
export function expectedOf({ versions }: Pick<Known, 'versions'>): string {
  const ready = [...versions].filter(({ state }) => state === 'ready')
  const names = [...new Set(ready.map(({ name }) => name)), ...ready.map(idOf)]
  return names.length === 0 ? 'none, for none is ready' : names.map(show).join(' or ')
}
