import { cpSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { contentVersion, MANIFEST_FILE } from '../model/manifest.js'

/** A bundle of the same weights and another version, whole and at once where the one before was. */
export function putVersion(bundleFolder: string, place: string, number: number): string {
  const work = `${place}.tmp-${number}`
  cpSync(bundleFolder, work, { recursive: true })
  const file = `${work}/${MANIFEST_FILE}`
  const manifest = JSON.parse(readFileSync(file, 'utf8'))
  manifest.producer = `${manifest.producer} (reload ${number})`
  manifest.version = contentVersion(manifest)
  writeFileSync(file, JSON.stringify(manifest))
  if (number > 0) renameSync(place, `${work}-former`)
  renameSync(work, place)
  rmSync(`${work}-former`, { recursive: true, force: true })
  return manifest.version
}
