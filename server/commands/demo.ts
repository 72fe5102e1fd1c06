import { existsSync, statSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { MANIFEST_FILE } from '../../model/manifest.js'
import { exportBundle } from './export.js'

/** Where the demo model's bundle lies, seen from the working directory: what is served by default. */
export const DEMO_BUNDLE = 'bundles/kuairand'

const ROOT = new URL('../../../', import.meta.url)
const DEMO_MODEL = fileURLToPath(new URL('demo/kuairand', ROOT))

/** Exports the demo model when `bundle` is its place and it is missing there, or older than model or build. */
export function ensureDemoBundle(bundle: string): void {
  if (bundle !== DEMO_BUNDLE || !existsSync(DEMO_MODEL)) return
  const built = statSync(`${bundle}/${MANIFEST_FILE}`, { throwIfNoEntry: false })?.mtimeMs ?? 0
  const sources = [
    `${DEMO_MODEL}/config.json`,
    `${DEMO_MODEL}/weights.safetensors`,
    fileURLToPath(import.meta.url),
  ]
  if (sources.every((file) => statSync(file).mtimeMs < built)) return
  exportBundle(DEMO_MODEL, bundle, 'fp32')
}
