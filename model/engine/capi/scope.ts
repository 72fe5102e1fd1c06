import type { TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'
import type { Values } from './sessions.js'
import { createTensor, ELEMENT } from './tensor.js'

type HostArray = Int32Array | BigInt64Array | Float32Array

/** The OrtValues of one run, and the arrays under them, which C alone would not keep alive. */
export type Scope = {
  /** An OrtValue over the array's own memory. */
  tensor(array: HostArray, dims: readonly number[]): Pointer
  /** The same over bytes; `type`: ELEMENT's. */
  tensorOf(bytes: Uint8Array, dims: readonly number[], type: number): Pointer
  /** Takes over values that others made. */
  own<V extends Values>(values: V): V
  /** Releases everything; exactly once, when the run is over. */
  end(): void
}

export function createScope(ort: Ort, host: Pick<TensorMemory, 'info'>): Scope {
  const pointers: Pointer[] = []
  const arrays: NodeJS.ArrayBufferView[] = []
  const tensorOver = (array: NodeJS.ArrayBufferView, dims: readonly number[], type: number) => {
    arrays.push(array)
    const pointer = createTensor(ort, host.info, array, dims, type)
    pointers.push(pointer)
    return pointer
  }
  return {
    tensor: (array, dims) => tensorOver(array, dims, elementOf(array)),
    tensorOf: tensorOver,
    own(values) {
      pointers.push(...Object.values(values))
      return values
    },
    end() {
      for (const pointer of pointers.splice(0)) ort.ReleaseValue(pointer)
      arrays.length = 0
    },
  }
}

function elementOf(array: HostArray): number {
  if (array instanceof Float32Array) return ELEMENT.float32
  return array instanceof Int32Array ? ELEMENT.int32 : ELEMENT.int64
}
