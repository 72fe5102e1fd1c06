import { show } from '../../model/check.js'
import { RankError } from '../../model/errors.js'
import { type Family, promote } from './family.js'
import { idOf, type Version } from './version.js'

export type LabelsOptions = {
  /** @throws {RankError} MODEL_NOT_FOUND */
  readonly familyNamed: (name: string) => Family
  /** @throws {RankError} MODEL_NOT_FOUND */
  readonly find: (name: string, version: string) => Version
  /** How long a promotion takes to move the users, where nothing else is said. */
  readonly rampMs: number
  readonly nowMs: () => number
  /** Labels of the family are others now. */
  readonly onChange: (family: Family) => void
  readonly onPromoted: (version: Version, rampMs: number) => void
}

type Beside = 'canary' | 'shadow'

export type Labels = ReturnType<typeof createLabels>

/** Which version of a name is stable, canary or shadow, and how that changes. */
export function createLabels(options: LabelsOptions) {
  const { familyNamed, find, nowMs, onChange, onPromoted } = options

  const relabel = (family: Family, version: Version, rampMs: number): void => {
    promote(family, version, rampMs, nowMs())
    onPromoted(version, rampMs)
    onChange(family)
  }
  const findReady = (name: string, version: string): Version => {
    const found = find(name, version)
    if (found.state === 'ready') return found
    throw conflict(`${idOf(found)} must be ready, it is ${found.state}`)
  }
  /** Labels what stands beside the stable version. */
  const setBeside = (
    name: string,
    version: string,
    label: Beside,
    put: (family: Family, found: Version) => void,
  ): void => {
    const family = familyNamed(name)
    const found = findReady(name, version)
    if (found === family.stable) {
      throw conflict(`${idOf(found)} is stable: it cannot be its own ${label}`)
    }
    put(family, found)
    onChange(family)
  }
  const clear = (name: string, label: Beside): void => {
    const family = familyNamed(name)
    delete family[label]
    onChange(family)
  }

  return {
    /**
     * Makes a version stable: at once for `name@stable`, user by user over `rampMs` for `name`.
     * @throws {RankError} MODEL_NOT_FOUND, CONFLICT
     */
    promote(name: string, version: string, rampMs: number = options.rampMs): void {
      relabel(familyNamed(name), findReady(name, version), rampMs)
    },
    /** Back to what was stable before, at once. @throws {RankError} MODEL_NOT_FOUND, CONFLICT */
    rollback(name: string): Version {
      const family = familyNamed(name)
      const { former } = family
      if (former === undefined) {
        const message = `model ${show(name)} has no former version that is still loaded: load it and promote it`
        throw conflict(message)
      }
      relabel(family, former, 0)
      return former
    },
    /** @throws {RankError} MODEL_NOT_FOUND, CONFLICT */
    setCanary(name: string, version: string, weightPercent: number): void {
      setBeside(name, version, 'canary', (family, found) => {
        family.canary = { version: found, weightPercent }
      })
    },
    /** @throws {RankError} MODEL_NOT_FOUND */
    clearCanary: (name: string) => clear(name, 'canary'),
    /** @throws {RankError} MODEL_NOT_FOUND, CONFLICT */
    setShadow(name: string, version: string, sharePercent: number): void {
      setBeside(name, version, 'shadow', (family, found) => {
        family.shadow = { version: found, sharePercent }
      })
    },
    /** @throws {RankError} MODEL_NOT_FOUND */
    clearShadow: (name: string) => clear(name, 'shadow'),
    /** Gives `version` all labels that the versions for which `isFormer` holds have. */
    takeOver(family: Family, version: Version, isFormer: (version: Version) => boolean): void {
      const { stable, canary, shadow } = family
      if (canary !== undefined && isFormer(canary.version)) family.canary = { ...canary, version }
      if (shadow !== undefined && isFormer(shadow.version)) family.shadow = { ...shadow, version }
      if (stable !== undefined && isFormer(stable)) relabel(family, version, options.rampMs)
      else onChange(family)
    },
  }
}

export function conflict(message: string): RankError {
  return new RankError('CONFLICT', message)
}
