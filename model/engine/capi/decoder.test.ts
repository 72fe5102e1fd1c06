import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { smallConfig } from '../../../test/fixtures.js'
import { builtKernels } from '../../../test/kernel-library.js'
import { createRandom } from '../../random.js'
import { createKvCodec } from '../codec/codec.js'
import { KV_CODECS, type KvCodecName, type KvPrecision } from '../codec/graphs.js'
import type { EncodedKv } from '../engine.js'
import { arrayWidths, kvShape } from '../kv-shape.js'
import { createBlocks } from './blocks.js'
import { createKvDecoder } from './decoder.js'
import { createKvStore } from './kv-store.js'
import { openKvTiles } from './kv-tiles.js'
import { findLibrary } from './library.js'
import { hostMemory, type TensorMemory } from './memory.js'
import { loadOrt, type Pointer } from './ort.js'
import { createEnv } from './sessions.js'

const config = smallConfig({ maxTokens: 200, dqk: 32, dv: 64 })
const widths = arrayWidths(kvShape(config))
const ort = loadOrt(findLibrary())
const { folder, skip } = builtKernels()
const LIBRARY = `${folder}/libperegrine_kernels_cpu.so`
const PRECISIONS = ['fp32', 'fp16', ...(skip ? [] : (['bf16'] as const))] as const

/** Everything that a decoder needs; `isPinned`: it writes elsewhere first, as for a GPU. */
function open(precision: KvPrecision, isPinned: boolean, hasTiles = false) {
  const before = ort.live()
  const env = createEnv(ort)
  const host = hostMemory(ort)
  const held = new Set<Pointer>()
  const pinned: TensorMemory = {
    ...host,
    async allocate(bytes) {
      const address = await host.allocate(bytes)
      held.add(address)
      return address
    },
    free(address) {
      assert.ok(held.delete(address), 'freed once')
      host.free(address)
    },
  }
  const blocks = createBlocks({ home: host })
  const tiles = hasTiles ? openKvTiles(LIBRARY) : undefined
  const store = createKvStore({ ort, blocks, host, config, precision, tiles })
  const decoder = createKvDecoder({
    ...{ ort, env, store, host, config, precision },
    kernels: precision === 'bf16' ? LIBRARY : undefined,
    pinned: isPinned ? pinned : undefined,
  })
  const options = ort.CreateRunOptions()
  return {
    store,
    blocks,
    import: (kv: EncodedKv) =>
      store.import(kv, (encoded, entry) => decoder.decode(encoded, entry, options)),
    /** Runs fail from now on, or do no more. */
    terminate(fails: boolean) {
      if (fails) ort.RunOptionsSetTerminate(options)
      else ort.RunOptionsUnsetTerminate(options)
    },
    async close() {
      await decoder.close()
      await blocks.close()
      ort.ReleaseRunOptions(options)
      host.close()
      ort.ReleaseEnv(env)
      assert.deepEqual([ort.live(), held.size], [before, 0])
    },
  }
}

/** Some rows through a codec, and what it makes of them. */
async function coded(name: KvCodecName, precision: KvPrecision, tokens: number, seed: number) {
  const random = createRandom(seed)
  const arrays = widths.map((width) => {
    const values = Float32Array.from({ length: tokens * width }, () => 4 * (random() - 0.5))
    return new Uint8Array(
      (precision === 'fp32' ? values : Uint16Array.from(values, (x) => 0x3000 + 99 * x)).buffer,
    )
  })
  const codec = createKvCodec(name, precision, widths)
  const planes = (await codec.encode(arrays)).map((plane) => plane.slice())
  await codec.decode(planes, arrays)
  await codec.close()
  const times = Float64Array.from({ length: tokens }, (_, i) => i)
  return { kv: { tokens, times, codec: name, planes }, arrays }
}

describe('createKvDecoder', () => {
  for (const [how, isPinned, hasTiles] of [
    ['straight into the rows', false, false],
    ['by way of pinned memory', true, false],
    ['into tiles', false, true],
  ] as const) {
    const options = { skip: hasTiles && skip }
    test(`decodes every codec ${how}, several at once, and leaves nothing`, options, async () => {
      for (const precision of hasTiles ? (['bf16'] as const) : PRECISIONS) {
        const opened = open(precision, isPinned, hasTiles)
        const cases = KV_CODECS.flatMap((name) => [0, 1, 63, 64, 150].map((n) => ({ name, n })))
        await Promise.all(
          cases.map(async ({ name, n }, seed) => {
            const { kv, arrays } = await coded(name, precision, n, seed)
            const entry = await opened.import(kv)
            await opened.blocks.beginRun(entry.block)
            const { layers, times } = await opened.store.export(entry, 0)
            opened.blocks.endRun(entry.block)
            const got = layers.flatMap(({ k, v }) => [k, v])
            assert.deepEqual(got, arrays, `${name} into ${precision}, ${n} tokens`)
            assert.deepEqual(times, kv.times)
            opened.store.release(entry)
          }),
        )
        await opened.close()
      }
    })
  }

  test('frees the block and the pinned memory of what fails', async () => {
    const opened = open('fp32', true)
    const { kv } = await coded('fp16', 'fp32', 20, 1)
    const missing: EncodedKv = { ...kv, codec: 'int8' }
    await assert.rejects(opened.import(missing), { code: 'KV_CORRUPT' })
    opened.terminate(true)
    await assert.rejects(opened.import(kv), { code: 'MODEL_CONTRACT', message: /terminate/ })
    opened.terminate(false)
    opened.store.release(await opened.import(kv))
    assert.equal(opened.blocks.stats().homeBytes, 0)
    await opened.close()
  })
})
