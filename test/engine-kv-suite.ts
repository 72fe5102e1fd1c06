// What every engine must do with K/V that leaves it and comes back; part of engine-suite.ts.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { largestDifference } from '../falcon/verify.js'
import { createKvCodec } from '../model/engine/codec/codec.js'
import { KV_CODECS, type KvCodecName } from '../model/engine/codec/graphs.js'
import type { EncodedKv, Engine, KvPages } from '../model/engine/engine.js'
import { arrayWidths, kvShape } from '../model/engine/kv-shape.js'
import type { Bundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { sliceTokens } from '../model/tokens.js'
import {
  exportModel,
  type ModelFixture,
  randomTokens,
  type Scope,
  smallConfig,
} from './fixtures.js'

/** An engine with two workers, or whatever an implementation has instead. */
export type CreateEngine = (bundle: Bundle) => Promise<Engine>

/** Largest difference of a logit or K/V value to the float64 oracle in float32. */
export const TOLERANCE = 1e-4

/** Opens engines that close when the test, or the suite, is over. */
export function openerOf(create: CreateEngine) {
  return async (scope: Scope, fixture: ModelFixture): Promise<Engine> => {
    const opened = await create(fixture.bundle)
    scope.after(() => opened.close())
    return opened
  }
}

export function engineKvSuite(name: string, create: CreateEngine): void {
  const open = openerOf(create)

  describe(`K/V of engine ${name}`, () => {
    const model = exportModel({ after })
    let engine: Engine
    before(async () => {
      engine = await create(model.bundle)
    })
    after(() => engine.close())

    test('exports K/V as the oracle has it and imports it back bit for bit', async () => {
      const random = createRandom(5)
      for (const events of [0, 1, 31, 32]) {
        const { history, candidates, queryTime } = randomTokens(model, random, {
          events,
          candidates: 4,
        })
        const handle = await engine.prefill(history)
        const pages = await engine.exportKv(handle)
        assert.equal(pages.tokens, history.length)
        assert.deepEqual([...pages.times], [...history.times])
        const { k, v } = model.reference(history, candidates, queryTime)
        pages.layers.forEach((layer, i) => {
          assert.ok(largestDifference(floats(layer.k), k[i] ?? []) <= TOLERANCE)
          assert.ok(largestDifference(floats(layer.v), v[i] ?? []) <= TOLERANCE)
        })
        const imported = await engine.importKv(pages)
        assert.equal(imported.tokens, history.length)
        assert.deepEqual(await engine.exportKv(imported), pages)
        for (let start = 0; start <= history.length; start++) {
          const rest = await engine.exportKv(handle, start)
          assert.deepEqual([...rest.times], [...history.times.subarray(start)])
          assert.deepEqual(kvBytes(rest), kvBytes(pages, start), `from token ${start}`)
        }
        assert.deepEqual(
          await engine.score(imported, candidates, queryTime),
          await engine.score(handle, candidates, queryTime),
        )
      }
    })

    test('refuses pages of another shape with KV_CORRUPT', async () => {
      const { history } = randomTokens(model, createRandom(6), { events: 4, candidates: 1 })
      const pages = await engine.exportKv(await engine.prefill(history))
      const [first = { k: new Uint8Array(0), v: new Uint8Array(0) }, ...others] = pages.layers
      const broken = [
        { ...pages, tokens: pages.tokens + 1 },
        { ...pages, tokens: pages.tokens - 1 },
        { ...pages, times: pages.times.slice(1) },
        { ...pages, layers: others },
        { ...pages, layers: [...pages.layers, first] },
        { ...pages, layers: [{ ...first, k: first.k.slice(1) }, ...others] },
        { ...pages, layers: [{ ...first, v: new Uint8Array(0) }, ...others] },
      ]
      for (const [i, each] of broken.entries()) {
        await assert.rejects(engine.importKv(each), { code: 'KV_CORRUPT' }, `case ${i}`)
      }
    })

    for (const precision of ['fp32', 'fp16'] as const) {
      test(`imports what a codec wrote from memory that threads share, into ${precision}`, async (t) => {
        const fixture = exportModel(t, { precision, config: smallConfig() })
        const decoding = await open(t, fixture)
        const { config } = fixture.bundle.manifest
        const random = createRandom(12)
        const cases = KV_CODECS.flatMap((codec) => [0, 1, 31].map((events) => ({ codec, events })))
        await Promise.all(
          cases.map(async ({ codec: name, events }) => {
            const what = `${name}, ${events} events`
            const tokens = randomTokens(fixture, random, { events, candidates: 4 })
            const { history, candidates, queryTime } = tokens
            const handle = await decoding.prefill(history)
            const pages = await decoding.exportKv(handle)
            const codec = createKvCodec(name, precision, arrayWidths(kvShape(config)))
            const arrays = pages.layers.flatMap(({ k, v }) => [k, v])
            const kv = encoded(pages, name, await codec.encode(arrays))
            await codec.decode(kv.planes, arrays)
            await codec.close()
            const imported = await decoding.importKv(kv)
            assert.equal(imported.tokens, history.length)
            // Whoever lent the planes writes something else there from now on.
            for (const plane of kv.planes) plane.fill(0xff)
            // The arrays of `pages` are now what the codec made of them.
            assert.deepEqual(await decoding.exportKv(imported), pages, what)
            const plain = await decoding.importKv(pages)
            assert.deepEqual(
              await decoding.score(imported, candidates, queryTime),
              await decoding.score(plain, candidates, queryTime),
              what,
            )
            for (const each of [handle, imported, plain]) decoding.release(each)
          }),
        )
        assert.equal(decoding.stats().pendingJobs, 0)
      })
    }

    test('appends to what it decoded as to what it computed', async () => {
      const random = createRandom(13)
      const { history, candidates, queryTime } = randomTokens(model, random, {
        events: 31,
        candidates: 4,
      })
      const { config, precision } = model.bundle.manifest
      const first = await engine.prefill(sliceTokens(history, 0, 40))
      const pages = await engine.exportKv(first)
      const codec = createKvCodec('fp16', precision, arrayWidths(kvShape(config)))
      const planes = await codec.encode(pages.layers.flatMap(({ k, v }) => [k, v]))
      await codec.close()
      const decoded = await engine.importKv(encoded(pages, 'fp16', planes))
      const rest = sliceTokens(history, 40, history.length)
      const logits = await Promise.all(
        [first, decoded].map(async (past) => {
          const whole = await engine.prefill(rest, { handle: past, tokens: 40 })
          const scored = await engine.score(whole, candidates, queryTime)
          engine.release(whole)
          engine.release(past)
          return scored
        }),
      )
      const [computed = [], fetched = []] = logits
      const difference = largestDifference(fetched, computed)
      assert.ok(
        difference > 0 && difference < 1e-2,
        `${difference}: half precision, not another history`,
      )
    })

    test('refuses encoded K/V of another shape with KV_CORRUPT', async () => {
      const { history } = randomTokens(model, createRandom(6), { events: 4, candidates: 1 })
      const pages = await engine.exportKv(await engine.prefill(history))
      const { config, precision } = model.bundle.manifest
      for (const name of KV_CODECS) {
        const codec = createKvCodec(name, precision, arrayWidths(kvShape(config)))
        const arrays = pages.layers.flatMap(({ k, v }) => [k, v])
        const kv = encoded(pages, name, await codec.encode(arrays))
        await codec.close()
        const [first = new Uint8Array(0), ...others] = kv.planes
        const broken: EncodedKv[] = [
          { ...kv, tokens: kv.tokens + 1 },
          { ...kv, tokens: kv.tokens - 1 },
          { ...kv, times: kv.times.slice(1) },
          { ...kv, planes: others },
          { ...kv, planes: [...kv.planes, first] },
          { ...kv, planes: [first.subarray(1), ...others] },
          { ...kv, codec: name === 'int8' ? 'fp32' : 'int8' },
        ]
        for (const [i, each] of broken.entries()) {
          await assert.rejects(engine.importKv(each), { code: 'KV_CORRUPT' }, `${name}, case ${i}`)
        }
      }
    })

    test('takes and gives float16 K/V in two bytes each', async (t) => {
      const half = exportModel(t, { precision: 'fp16', config: smallConfig() })
      const engine = await open(t, half)
      const { history, candidates, queryTime } = randomTokens(half, createRandom(1), {
        events: 12,
        candidates: 4,
      })
      const whole = await engine.prefill(history)
      const pages = await engine.exportKv(whole)
      assert.equal(pages.layers[0]?.k.byteLength, history.length * 2 * 6 * 2)
      const imported = await engine.importKv(pages)
      assert.deepEqual(
        await engine.score(imported, candidates, queryTime),
        await engine.score(whole, candidates, queryTime),
      )
    })
  })
}

/** Planes as tier 2 lends them: in one piece of shared memory. */
function encoded(
  { tokens, times }: KvPages,
  codec: KvCodecName,
  planes: readonly Uint8Array[],
): EncodedKv {
  const bytes = planes.reduce((sum, { byteLength }) => sum + byteLength, 0)
  const memory = new SharedArrayBuffer(bytes + 8 * planes.length)
  let at = 0
  const shared = planes.map((plane) => {
    const copy = new Uint8Array(memory, at, plane.byteLength)
    copy.set(plane)
    at += Math.ceil(plane.byteLength / 8) * 8
    return copy
  })
  return { tokens, times, codec, planes: shared }
}

export function floats(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.slice().buffer)
}

/** K and V of every layer as one list of float32, from token `start` on. */
export function kvBytes({ layers, tokens }: KvPages, start = 0) {
  const rows = (bytes: Uint8Array) => {
    const values = [...floats(bytes)]
    return values.slice(tokens === 0 ? 0 : (values.length / tokens) * start)
  }
  return layers.flatMap(({ k, v }) => [...rows(k), ...rows(v)])
}
