import type { HstuConfig } from '../../config.js'
import { decoderGraph, type KvCodecName, type KvPrecision, planesOf } from '../codec/graphs.js'
import type { EncodedKv } from '../engine.js'
import { arrayWidths, kvShape } from '../kv-shape.js'
import type { KvEntry, KvStore } from './kv-store.js'
import type { TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'
import { createScope } from './scope.js'
import { openGraph, type Session } from './sessions.js'
import { ELEMENT } from './tensor.js'

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

export type KvDecoder = ReturnType<typeof createKvDecoder>

/**
 * Decodes K/V off the event loop, on the CPU, straight into a block's rows: no array of JavaScript's
 * lies between. For a GPU into pinned memory first, in one copy from there: far fewer bytes than a
 * prefill reads.
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

  /** Runs into rows of `block`, in the process's own memory. */
  const run = async (
    { tokens, codec, planes }: EncodedKv,
    block: Parameters<KvStore['rows']>[0]['block'],
    options: Pointer,
  ): Promise<void> => {
    const session = await sessionOf(codec)
    const scope = createScope(ort, host)
    try {
      const rows = scope.own(store.rows({ block }, 0, tokens, 'k.', 'v.'))
      const outputs = Object.fromEntries(
        widths.map((_, i) => [`x.${i}`, rows[`${i % 2 === 0 ? 'k' : 'v'}.${i >> 1}`] ?? 0n]),
      )
      const shapes = widths.flatMap((width) => planesOf(codec, width))
      const inputs = shapes.map(({ type, width }, p): [string, Pointer] => [
        `plane.${p}`,
        scope.tensorOf(planes[p] ?? new Uint8Array(0), [tokens, width], ELEMENT[type]),
      ])
      await session.run(Object.fromEntries(inputs), outputs, options)
    } finally {
      scope.end()
    }
  }

  return {
    /** Writes the entry's rows; its block is in a run. `options`: OrtRunOptions. */
    async decode(kv: EncodedKv, { block }: KvEntry, options: Pointer): Promise<void> {
      if (kv.tokens === 0) return
      if (pinned === undefined) return run(kv, block, options)
      const { capacity, bytes } = block
      const address = await pinned.allocate(bytes)
      try {
        await run(kv, { memory: host, address, capacity }, options)
        await block.memory.copy(block.address, address, bytes)
      } finally {
        pinned.free(address)
      }
    },
    async close(): Promise<void> {
      for (const opened of await Promise.allSettled(sessions.values())) {
        if (opened.status === 'fulfilled') opened.value.release()
      }
      sessions.clear()
    },
  }
}
