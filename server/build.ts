import { readFileSync } from 'node:fs'
import { onnxRuntimeVersion } from '../model/engine/version.js'

/** What runs here. */
export type Build = {
  readonly version: string
  /** Of the sources, as `npm run build` noted it; `unknown` where it was told none. */
  readonly commit: string
  readonly node: string
  readonly onnxruntime: string
}

export function readBuild(): Build {
  return {
    version: field('../../package.json', 'version'),
    commit: field('../build.json', 'commit'),
    node: process.versions.node,
    onnxruntime: onnxRuntimeVersion(),
  }
}

function field(file: string, name: string): string {
  try {
    const value: unknown = JSON.parse(readFileSync(new URL(file, import.meta.url), 'utf8'))
    const text: unknown = typeof value === 'object' && value !== null && Reflect.get(value, name)
    return typeof text === 'string' && text !== '' ? text : 'unknown'
  } catch {
    return 'unknown'
  }
}
