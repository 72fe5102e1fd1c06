import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs'
import { fromBinary } from '@bufbuild/protobuf'
import { ModelProtoSchema, type TensorProto, TensorProto_DataLocation } from 'onnx-buf'
import { RankError } from '../../errors.js'
import { isSafe } from '../../manifest.js'
import { mapFile, type TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'

/** Bytes of an element by ONNX's data types, of those that bundles have. */
const ELEMENT_BYTES = new Map([
  [1, 4], // float32
  [10, 2], // float16
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
  release(): void
}

/**
 * Maps the weight file once for all sessions. On the CPU the tensors are the file's own pages, shared
 * with every other process; on a GPU `upload` copies them there once.
 * @throws {RankError} MODEL_CONTRACT when a graph's weights do not lie in the file as it says
 */
export function shareWeights(
  ort: Ort,
  memory: Pick<TensorMemory, 'info'>,
  folder: string,
  graphFiles: readonly string[],
  upload: (from: Pointer, bytes: number) => { address: Pointer; free(): void } = (address) => ({
    address,
    free() {},
  }),
): SharedWeights {
  const places = new Map<string, Place>()
  for (const file of graphFiles) {
    for (const [name, place] of externalTensors(folder, file)) {
      const other = places.get(name)
      if (other !== undefined && JSON.stringify(other) !== JSON.stringify(place)) {
        throw invalid(`${file}: initializer ${name} lies elsewhere than in the other graphs`)
      }
      places.set(name, place)
    }
  }
  const releases: (() => void)[] = []
  const values = new Map<string, Pointer>()
  let bytes = 0
  const release = () => {
    for (const value of values.values()) ort.ReleaseValue(value)
    values.clear()
    for (const each of releases.splice(0).reverse()) each()
  }
  try {
    for (const file of new Set([...places.values()].map((place) => place.file))) {
      const fd = openSync(`${folder}/${file}`, 'r')
      try {
        const { size } = fstatSync(fd)
        const mapped = mapFile(fd, size)
        releases.push(mapped.unmap)
        const { address, free } = upload(mapped.address, size)
        releases.push(free)
        bytes += size
        for (const [name, place] of places) {
          if (place.file !== file) continue
          if (place.offset + place.length > size) {
            throw invalid(`initializer ${name} ends at ${place.offset + place.length} of ${size}`)
          }
          const at = address + BigInt(place.offset)
          const dims = BigInt64Array.from(place.dims, BigInt)
          const { length, type } = place
          values.set(
            name,
            ort.CreateTensorWithDataAsOrtValue(memory.info, at, length, dims, dims.length, type),
          )
        }
      } finally {
        closeSync(fd)
      }
    }
    return { values, bytes, release }
  } catch (error) {
    release()
    throw error
  }
}

function externalTensors(folder: string, file: string): Map<string, Place> {
  let initializers: readonly TensorProto[]
  try {
    const model = fromBinary(ModelProtoSchema, readFileSync(`${folder}/${file}`))
    initializers = model.graph?.initializer ?? []
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('MODEL_CONTRACT', `${folder}/${file} does not load: ${why}`, { cause })
  }
  const places = new Map<string, Place>()
  for (const { name, dims, dataType, dataLocation, externalData } of initializers) {
    // Vectors are not worth sharing, and float16 layer norms refuse to share what they pack.
    if (dataLocation !== TensorProto_DataLocation.EXTERNAL || dims.length < 2) continue
    const entry = (key: string) => externalData.find((each) => each.key === key)?.value ?? ''
    const place: Place = {
      dims: dims.map(Number),
      type: dataType,
      file: entry('location'),
      offset: Number(entry('offset')),
      length: Number(entry('length')),
    }
    const elements = place.dims.reduce((product, dim) => product * dim, 1)
    const isWhole = [place.offset, place.length].every((x) => Number.isSafeInteger(x) && x >= 0)
    const width = ELEMENT_BYTES.get(place.type)
    if (
      !isWhole ||
      !isSafe(place.file) ||
      width === undefined ||
      elements * width !== place.length
    ) {
      throw invalid(
        `${folder}/${file}: initializer ${name} of ${place.dims.join('x')} must be ${elements * (width ?? 4)} bytes in a file of the bundle, got ${place.length} at ${entry('offset')} of ${entry('location')}`,
      )
    }
    places.set(name, place)
  }
  return places
}

function invalid(message: string): RankError {
  return new RankError('MODEL_CONTRACT', message)
}
