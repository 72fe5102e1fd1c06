import { existsSync } from 'node:fs'
import { RankError } from '../../errors.js'
import { onnxRuntimeFolder } from '../version.js'

/**
 * ONNX Runtime's shared library as onnxruntime-node ships it.
 * @throws {RankError} ENGINE_UNAVAILABLE where this platform has none that this engine was tried on
 */
export function findLibrary(platform = process.platform, arch = process.arch): string {
  if (platform !== 'linux') {
    throw new RankError('ENGINE_UNAVAILABLE', `engine capi runs on linux, got ${platform}`)
  }
  const path = `${onnxRuntimeFolder()}/bin/napi-v6/${platform}/${arch}/libonnxruntime.so.1`
  if (existsSync(path)) return path
  throw new RankError('ENGINE_UNAVAILABLE', `engine capi expects ${path}, which is not there`)
}
