import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'

/** Folder of the package onnxruntime-node. */
export function onnxRuntimeFolder(): string {
  // The package exports its entry only: <package>/dist/index.js.
  return dirname(dirname(createRequire(import.meta.url).resolve('onnxruntime-node')))
}

/** Version of the ONNX Runtime that comes with the package. */
export function onnxRuntimeVersion(): string {
  const text = readFileSync(`${onnxRuntimeFolder()}/package.json`, 'utf8')
  const { version }: { version: string } = JSON.parse(text)
  return version
}
