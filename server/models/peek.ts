import { readJson } from '../../model/config.js'
import { RankError } from '../../model/errors.js'
import { MANIFEST_FILE } from '../../model/manifest.js'
import { isRecord } from '../fault.js'

/** Name and version that a bundle says it has; nothing else of it is checked. @throws {RankError} BUNDLE_INVALID */
export function peekBundle(folder: string): { readonly name: string; readonly version: string } {
  const manifest = readJson(`${folder}/${MANIFEST_FILE}`, 'BUNDLE_INVALID')
  const { name, version } = isRecord(manifest) ? manifest : {}
  if (typeof name === 'string' && typeof version === 'string') return { name, version }
  throw new RankError('BUNDLE_INVALID', `${folder}/${MANIFEST_FILE} must have a name and a version`)
}
