import { existsSync, readdirSync, statSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { readConfig, readJson } from '../../model/config.js'
import { MANIFEST_FILE } from '../../model/manifest.js'
import { isRecord } from '../fault.js'
import { exportBundle } from './export.js'

/** Where the demo model's bundle lies, seen from the working directory: what is served by default. */
export const DEMO_BUNDLE = 'bundles/kuairand'

const PRECISION = 'fp32'
const ROOT = new URL('../../../', import.meta.url)
const DEMO_MODEL = fileURLToPath(new URL('demo/kuairand', ROOT))

/**
 * Exports the demo model into its default place when the bundle there is missing, or older than the
 * model or this build. A bundle that is not the demo's own is left alone.
 */
export function ensureDemoBundle(bundle: string): void {
  if (bundle !== DEMO_BUNDLE || !existsSync(DEMO_MODEL)) return
  const manifest = `${bundle}/${MANIFEST_FILE}`
  if (existsSync(manifest)) {
    const found = readJson(manifest, 'BUNDLE_INVALID')
    const { name } = readConfig(`${DEMO_MODEL}/config.json`)
    if (!isRecord(found) || found.name !== name || found.precision !== PRECISION) return
    const built = statSync(manifest).mtimeMs
    const vocabularies = readdirSync(`${DEMO_MODEL}/vocabularies`).map((f) => `vocabularies/${f}`)
    const sources = ['config.json', 'weights.safetensors', 'items.json', ...vocabularies]
    const files = [...sources.map((f) => `${DEMO_MODEL}/${f}`), fileURLToPath(import.meta.url)]
    if (files.every((file) => statSync(file).mtimeMs < built)) return
  }
  exportBundle(DEMO_MODEL, bundle, PRECISION)
}
