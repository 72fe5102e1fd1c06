// What every engine must do, whatever runs behind it: node/pool.test.ts and its successors call this.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { largestDifference } from '../falcon/verify.js'
import { createKvCodec } from '../model/engine/codec/codec.js'
import { KV_CODECS, type KvCodecName } from '../model/engine/codec/graphs.js'
import type { EncodedKv, Engine, KvHandle, KvPages } from '../model/engine/engine.js'
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
const TOLERANCE = 1e-4

export function engineSuite(name: string, create: CreateEngine): void {
  const open = async (scope: Scope, fixture: ModelFixture) => {
    const opened = await create(fixture.bundle)
    scope.after(() => opened.close())
    return opened
  }

  describe(`engine ${name}`, () => {
    const model = exportModel({ after })
    let engine: Engine
    before(async () => {
      engine = await create(model.bundle)
    })
    after(() => engine.close())

    test('answers 200 interleaved jobs of many histories as the oracle does', async () => {
      const seed = 11
      const random = createRandom(seed)
      const cases = Array.from({ length: 40 }, (_, i) => {
        const tokens = randomTokens(model, random, { events: i % 31, candidates: 1 + (i % 7) })
        const { history, candidates, queryTime } = tokens
        return { ...tokens, expected: model.reference(history, candidates, queryTime).logits }
      })
      const jobs = cases.map(async ({ history, candidates, queryTime, expected }, i) => {
        const whole = await engine.prefill(history)
        const [scored, ranked, appended] = await Promise.all([
          engine.score(whole, candidates, queryTime),
          engine.rank([{ history, candidates, queryTime }]),
          (async () => {
            const split = Math.min(i, history.length)
            const rest = sliceTokens(history, split, history.length)
            const handle = await engine.prefill(rest, { handle: whole, tokens: split })
            const logits = await engine.score(handle, candidates, queryTime)
            engine.release(handle)
            return logits
          })(),
        ])
        engine.release(whole)
        for (const got of [scored, ranked[0] ?? [], appended]) {
          assert.ok(largestDifference(got, expected) <= TOLERANCE, `seed ${seed}, case ${i}`)
        }
      })
      await Promise.all(jobs)
      assert.equal(engine.stats().pendingJobs, 0)
    })

    test('refuses a released handle, and one of another engine', async (t) => {
      const other = await open(t, model)
      const { history, candidates, queryTime } = randomTokens(model, createRandom(1), {
        events: 3,
        candidates: 2,
      })
      const handle = await engine.prefill(history)
      await assert.rejects(async () => other.score(handle, candidates, queryTime), {
        code: 'INTERNAL',
        message: /handle of another engine/,
      })
      engine.release(handle)
      await assert.rejects(engine.score(handle, candidates, queryTime), {
        code: 'INTERNAL',
        message: /released/,
      })
      await assert.rejects(engine.exportKv(handle), { code: 'INTERNAL' })
      await assert.rejects(engine.prefill(history, { handle, tokens: 1 }), { code: 'INTERNAL' })
    })

    test('refuses more past tokens than the handle has', async () => {
      const { history } = randomTokens(model, createRandom(2), { events: 3, candidates: 1 })
      const handle = await engine.prefill(history)
      await assert.rejects(engine.prefill(history, { handle, tokens: history.length + 1 }), {
        code: 'INTERNAL',
        message: /past has 8 tokens, asked for 9/,
      })
    })

    test('never changes a handle by what is appended to it, at every split', async () => {
      const random = createRandom(3)
      const { history } = randomTokens(model, random, { events: 20, candidates: 1 })
      const other = randomTokens(model, random, { events: 20, candidates: 1 }).history
      const expected = kvBytes(await engine.exportKv(await engine.prefill(history)))
      for (let split = 0; split <= history.length; split++) {
        const past = await engine.prefill(sliceTokens(history, 0, split))
        const before = kvBytes(await engine.exportKv(past))
        const rest = sliceTokens(history, split, history.length)
        // Two suffixes on one past, then the first again: only one of them may grow in place.
        const first = await engine.prefill(rest, { handle: past, tokens: split })
        const second = await engine.prefill(sliceTokens(other, split, other.length), {
          handle: past,
          tokens: split,
        })
        const again = await engine.prefill(rest, { handle: past, tokens: split })
        assert.deepEqual(kvBytes(await engine.exportKv(past)), before, `split ${split}`)
        for (const handle of [first, again]) {
          const got = kvBytes(await engine.exportKv(handle))
          assert.ok(largestDifference(got, expected) <= 1e-5, `split ${split}`)
        }
        if (split < history.length) {
          assert.notDeepEqual(kvBytes(await engine.exportKv(second)), expected, `split ${split}`)
        }
        for (const handle of [past, first, second, again]) engine.release(handle)
      }
    })

    test('views the first tokens of a handle when nothing is appended', async () => {
      const { history, candidates, queryTime } = randomTokens(model, createRandom(4), {
        events: 9,
        candidates: 3,
      })
      const whole = await engine.prefill(history)
      for (let tokens = 0; tokens <= history.length; tokens++) {
        const view = await engine.prefill(sliceTokens(history, 0, 0), { handle: whole, tokens })
        assert.equal(view.tokens, tokens)
        const got = await engine.score(view, candidates, queryTime)
        const expected = model.reference(sliceTokens(history, 0, tokens), candidates, queryTime)
        assert.ok(largestDifference(got, expected.logits) <= TOLERANCE, `${tokens} tokens`)
        engine.release(view)
      }
      // The whole outlives its views.
      await engine.score(whole, candidates, queryTime)
    })

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

    test('scores no history, no candidates, and no users', async (t) => {
      const bare = exportModel(t, { config: smallConfig({ context: [] }) })
      const bareEngine = await open(t, bare)
      const { history, candidates, queryTime } = randomTokens(bare, createRandom(7), {
        events: 0,
        candidates: 3,
      })
      assert.equal(history.length, 0)
      const handle = await bareEngine.prefill(history)
      const expected = bare.reference(history, candidates, queryTime).logits
      const scored = await bareEngine.score(handle, candidates, queryTime)
      assert.ok(largestDifference(scored, expected) <= TOLERANCE)
      assert.equal((await bareEngine.score(handle, new Int32Array(0), queryTime)).length, 0)
      const user = { history, candidates, queryTime }
      const [ranked = []] = await bareEngine.rank([user])
      assert.ok(largestDifference(ranked, expected) <= TOLERANCE)
      const [none] = await bareEngine.rank([{ ...user, candidates: new Int32Array(0) }])
      assert.equal(none?.length, 0)
      assert.deepEqual(await bareEngine.rank([]), [])
    })

    test('prefills a history of several chunks as the oracle does, and appends across their edges', async (t) => {
      const config = smallConfig({ maxTokens: 1300, layers: 2, heads: 1, dqk: 4, dModel: 8 })
      const long = exportModel(t, { config })
      const longEngine = await open(t, long)
      const { history, candidates, queryTime } = randomTokens(long, createRandom(8), {
        events: 520,
        candidates: 2,
      })
      assert.ok(history.length > 1024, 'more than two chunks of 512')
      const expected = long.reference(history, candidates, queryTime).logits
      for (const split of [0, 1, 511, 512, 513, 1030, history.length]) {
        const past = await longEngine.prefill(sliceTokens(history, 0, split))
        const rest = sliceTokens(history, split, history.length)
        const handle = await longEngine.prefill(rest, { handle: past, tokens: split })
        const got = await longEngine.score(handle, candidates, queryTime)
        assert.ok(largestDifference(got, expected) <= TOLERANCE, `split ${split}`)
        longEngine.release(past)
        longEngine.release(handle)
      }
    })

    test('answers what runs when close() is called, and refuses what comes after', async () => {
      const closing = await create(model.bundle)
      const { history, candidates, queryTime } = randomTokens(model, createRandom(9), {
        events: 30,
        candidates: 5,
      })
      const handle: KvHandle = await closing.prefill(history)
      const running = Array.from({ length: 30 }, () => closing.score(handle, candidates, queryTime))
      const closed = closing.close()
      const [first, ...others] = await Promise.all(running)
      for (const logits of others) assert.deepEqual(logits, first)
      await closed
      assert.equal(closing.isAlive(handle), false)
      await assert.rejects(closing.score(handle, candidates, queryTime), { code: 'WORKER_CRASHED' })
      await assert.rejects(async () => closing.prefill(history), { code: 'WORKER_CRASHED' })
      closing.release(handle)
      await closing.close()
    })

    test('may be closed twice at once', async () => {
      const closing = await create(model.bundle)
      await Promise.all([closing.close(), closing.close()])
      assert.equal(closing.stats().workers, 0)
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

    test('warms up without keeping anything', async () => {
      await engine.warmUp({ historyTokens: [66, 2, 0], candidates: [8, 1] })
      assert.equal(engine.stats().pendingJobs, 0)
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

function floats(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.slice().buffer)
}

/** All K/V of a handle as one list of float32. */
/** K and V of every layer, from token `start` on. */
function kvBytes({ layers, tokens }: KvPages, start = 0) {
  const rows = (bytes: Uint8Array) => {
    const values = [...floats(bytes)]
    return values.slice(tokens === 0 ? 0 : (values.length / tokens) * start)
  }
  return layers.flatMap(({ k, v }) => [...rows(k), ...rows(v)])
}
