import type { HstuConfig } from '../../config.js'
import { decoderGraph, type KvCodecName, type KvPrecision, planesOf } from '../codec/graphs.js'
import type { EncodedKv } from '../engine.js'
import { arrayWidths, KV_ELEMENT_BYTES, kvShape } from '../kv-shape.js'
import type { KvEntry, KvStore } from './kv-store.js'
import type { TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'
import { createScope, type Scope } from './scope.js'
import { openGraph, type Session } from './sessions.js'
import { ELEMENT, KV_ELEMENT } from './tensor.js'

type Parts = {
  readonly ort: Ort
  readonly env: Pointer
  readonly store: KvStore
  /** The process's own, where planes lie. */
  readonly host: TensorMemory
  /** Memory that a GPU copies from; absent where blocks lie in the process's own. */
  readonly pinned: TensorMemory | undefined
  readonly config: HstuConfig
  readonly precision: KvPrecision
  /** The library whose op rounds to bf16, for that precision. */
  readonly kernels: string | undefined
}

type BlockRows = Parameters<KvStore['rows']>[0]['block']

export type KvDecoder = ReturnType<typeof createKvDecoder>

/**
 * Decodes K/V off the event loop, on the CPU, straight into a block's rows: no array of JavaScript's
 * lies between. For a GPU into pinned memory first, in one copy from there: far fewer bytes than a
 * prefill reads. Tiles have no address for a row: for them into arrays first.
 */
export function createKvDecoder(parts: Parts) {
  const { ort, env, store, host, pinned, config, precision, kernels } = parts
  const widths = arrayWidths(kvShape(config))
  const sessions = new Map<KvCodecName, Promise<Session>>()

  const sessionOf = (codec: KvCodecName): Promise<Session> => {
    const known = sessions.get(codec)
    if (known !== undefined) return known
    const session = openGraph(ort, env, decoderGraph(codec, precision, widths.length), kernels)
    sessions.set(codec, session)
    // Another try for whoever comes next.
    session.catch(() => sessions.delete(codec))
    return session
  }

  /** Runs into rows in the process's own memory. */
  const run = async (
    { tokens, codec, planes }: EncodedKv,
    arraysIn: (scope: Scope) => readonly Pointer[],
    options: Pointer,
  ): Promise<void> => {
    const session = await sessionOf(codec)
    const scope = createScope(ort, host)
    try {
      const outputs = arraysIn(scope).map((array, i): [string, Pointer] => [`x.${i}`, array])
      const shapes = widths.flatMap((width) => planesOf(codec, width))
      const inputs = shapes.map(({ type, width }, p): [string, Pointer] => [
        `plane.${p}`,
        scope.tensorOf(planes[p] ?? new Uint8Array(0), [tokens, width], ELEMENT[type]),
      ])
      await session.run(Object.fromEntries(inputs), Object.fromEntries(outputs), options)
    } finally {
      scope.end()
    }
  }

  return {
    /** Writes the entry's rows; its block is in a run. `options`: OrtRunOptions. */
    async decode(kv: EncodedKv, { block }: KvEntry, options: Pointer): Promise<void> {
      if (kv.tokens === 0) return
      if (store.hasTiles) {
        const arrays = widths.map(
          (width) => new Uint8Array(kv.tokens * width * KV_ELEMENT_BYTES[precision]),
        )
        const type = KV_ELEMENT[precision]
        const tensors = (scope: Scope) =>
          arrays.map((array, i) => scope.tensorOf(array, [kv.tokens, widths[i] ?? 0], type))
        await run(kv, tensors, options)
        return store.writeRows(block, arrays)
      }
      const rowsOf = (block: BlockRows) => (scope: Scope) => {
        const rows = scope.own(store.rows({ block }, 0, kv.tokens, 'k.', 'v.'))
        return widths.map((_, i) => rows[`${i % 2 === 0 ? 'k' : 'v'}.${i >> 1}`] ?? 0n)
      }
      if (pinned === undefined) return run(kv, rowsOf(block), options)
      const { capacity, bytes } = block
      const address = await pinned.allocate(bytes)
      try {
        await run(kv, rowsOf({ memory: host, address, capacity }), options)
        await block.memory.copy(block.address, address, bytes)
      } finally {
        pinned.free(address)
      }
    },
    async close(): Promise<void> {
      for (const opened of await Promise.allSettled(sessions.values())) {
        if (opened.status === 'fulfilled') await opened.value.release()
      }
      sessions.clear()
    },
  }
}
