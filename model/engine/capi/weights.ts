import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { fromBinary } from '@bufbuild/protobuf'
import { ModelProtoSchema, type TensorProto, TensorProto_DataLocation } from 'onnx-buf'
import { show } from '../../check.js'
import { RankError } from '../../errors.js'
import type { Bundle } from '../../manifest.js'
import { mapFile } from './map.js'
import type { TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'
import { createTensor, ELEMENT, elementBytes } from './tensor.js'

/** Those that bundles have. */
const WEIGHT_TYPES: ReadonlySet<number> = new Set([
  ELEMENT.float32,
  ELEMENT.float16,
  ELEMENT.int8,
  ELEMENT.int32,
])

type Place = {
  readonly dims: readonly number[]
  readonly type: number
  readonly file: string
  readonly offset: number
  readonly length: number
}

/** The initializers of a bundle's graphs as OrtValues over one copy of the weight file. */
export type SharedWeights = {
  readonly values: ReadonlyMap<string, Pointer>
  readonly bytes: number
  release(): Promise<void>
}

/** Puts one tensor where its sessions are. `name` is the initializer's. */
export type Upload = (
  from: Pointer,
  bytes: number,
  name: string,
) => { address: Pointer; free(): void }

/**
 * Maps the weight file once for all sessions. On the CPU the tensors are the file's own pages, shared
 * with every other process; on a GPU `upload` copies them there once.
 * @throws {RankError} MODEL_CONTRACT when a graph's weights do not lie as it says, in a file that the
 *   manifest lists and whose hash was therefore checked
 */
export async function shareWeights(
  ort: Ort,
  memory: Pick<TensorMemory, 'info'>,
  { folder, manifest }: Pick<Bundle, 'folder' | 'manifest'>,
  upload: Upload = (address) => ({ address, free() {} }),
): Promise<SharedWeights> {
  const places = new Map<string, Place>()
  for (const { file } of Object.values(manifest.graphs)) {
    for (const [name, place] of externalTensors(folder, file, manifest.files)) {
      const other = places.get(name)
      if (other !== undefined && JSON.stringify(other) !== JSON.stringify(place)) {
        throw invalid(`${folder}/${file}: initializer ${name} lies elsewhere than it did before`)
      }
      places.set(name, place)
    }
    // Milliseconds each: traffic has its turn.
    await setImmediate()
  }
  const releases: (() => void | Promise<void>)[] = []
  const values = new Map<string, Pointer>()
  let bytes = 0
  const release = async () => {
    for (const value of values.values()) ort.ReleaseValue(value)
    values.clear()
    for (const each of releases.splice(0).reverse()) await each()
  }
  try {
    for (const file of new Set([...places.values()].map((place) => place.file))) {
      const own = [...places].filter(([, place]) => place.file === file)
      const mapped = mapWeights(folder, file, own)
      releases.push(mapped.unmap)
      bytes += mapped.bytes
      for (const [name, { offset, length, dims, type }] of own) {
        const { address: at, free } = upload(mapped.address + BigInt(offset), length, name)
        releases.push(free)
        values.set(name, createTensor(ort, memory.info, at, dims, type))
      }
    }
    return { values, bytes, release }
  } catch (error) {
    await release()
    throw error
  }
}

/** The whole file in memory, when it is one and every tensor ends within it. */
function mapWeights(folder: string, file: string, places: readonly (readonly [string, Place])[]) {
  const fd = openWeights(`${folder}/${file}`)
  try {
    const stat = fstatSync(fd)
    if (!stat.isFile()) throw invalid(`${folder}/${file} must be a file`)
    for (const [name, { offset, length }] of places) {
      if (offset + length <= stat.size) continue
      throw invalid(
        `${folder}/${file}: initializer ${name} must end within ${stat.size} bytes, ends at ${offset + length}`,
      )
    }
    return { ...mapFile(fd, stat.size), bytes: stat.size }
  } finally {
    closeSync(fd)
  }
}

function openWeights(path: string): number {
  try {
    return openSync(path, 'r')
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('MODEL_CONTRACT', `weights do not open: ${why}`, { cause })
  }
}

function externalTensors(
  folder: string,
  file: string,
  listed: Bundle['manifest']['files'],
): (readonly [string, Place])[] {
  let initializers: readonly TensorProto[]
  try {
    const model = fromBinary(ModelProtoSchema, readFileSync(`${folder}/${file}`))
    initializers = model.graph?.initializer ?? []
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('MODEL_CONTRACT', `${folder}/${file} does not load: ${why}`, { cause })
  }
  const places: (readonly [string, Place])[] = []
  for (const { name, dims, dataType, dataLocation, externalData } of initializers) {
    if (dataLocation !== TensorProto_DataLocation.EXTERNAL) continue
    const entry = (key: string) => externalData.find((each) => each.key === key)?.value ?? ''
    if (!Object.hasOwn(listed, entry('location'))) {
      throw invalid(
        `${folder}/${file}: initializer ${name} must lie in a file that the manifest lists, got ${show(entry('location'))}`,
      )
    }
    // Vectors are not worth sharing, and float16 layer norms refuse to share what they pack.
    if (dims.length < 2) continue
    const place: Place = {
      dims: dims.map(Number),
      type: dataType,
      file: entry('location'),
      offset: Number(entry('offset')),
      length: Number(entry('length')),
    }
    const elements = place.dims.reduce((product, dim) => product * dim, 1)
    const width = WEIGHT_TYPES.has(place.type) ? elementBytes(place.type) : Number.NaN
    const isThere =
      place.dims.every((dim) => dim > 0) &&
      Number.isSafeInteger(place.length) &&
      place.length === elements * width &&
      Number.isSafeInteger(place.offset) &&
      place.offset >= 0 &&
      place.offset % width === 0
    if (!isThere) {
      throw invalid(
        `${folder}/${file}: initializer ${name} of ${place.dims.join('x')} must be ${elements * width} aligned bytes, got ${entry('length')} at ${entry('offset')} of ${entry('location')}`,
      )
    }
    places.push([name, place])
  }
  return places
}

function invalid(message: string): RankError {
  return new RankError('MODEL_CONTRACT', message)
}
