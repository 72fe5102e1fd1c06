// K/V that the CPU's kernels keep in bfloat16: beside the same kernels over K/V in float32, which they
// round in each run.
import assert from 'node:assert/strict'
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { digestChain } from '../cache/digest.js'
import { userHash } from '../cache/key.js'
import { openTier2 } from '../cache/open-tier2.js'
import { parseRedisUrl } from '../cache/redis-url.js'
import { largestDifference } from '../falcon/verify.js'
import { toBf16 } from '../model/bf16.js'
import { parseConfig } from '../model/config.js'
import { createCapiEngine } from '../model/engine/capi/engine.js'
import { createKvCodec } from '../model/engine/codec/codec.js'
import { KV_CODECS } from '../model/engine/codec/graphs.js'
import { createEngine } from '../model/engine/create.js'
import type { Engine, KvHandle, KvPages } from '../model/engine/engine.js'
import { arrayWidths, kvShape } from '../model/engine/kv-shape.js'
import { createRandom } from '../model/random.js'
import { sliceTokens } from '../model/tokens.js'
import {
  exportModel,
  type ModelFixture,
  randomTokens,
  type Scope,
  smallConfig,
  tempFolder,
} from './fixtures.js'
import { builtKernels, withFloat32Kv } from './kernel-library.js'
import { NO_REDIS, startRedis, until } from './redis.js'
import { SMALL_RESEARCH } from './small-checkpoints.js'

const { folder, skip } = builtKernels()

async function open(scope: Scope, { bundle }: ModelFixture, kernels: string) {
  const options = { workers: 2, threadsPerWorker: 1, kernels }
  const engine = await createEngine({ bundle, engine: 'capi', ...options })
  scope.after(() => engine.close())
  assert.equal(engine.stats().kernels?.arithmetic, 'bf16')
  return engine
}

async function openBoth(scope: Scope, model: ModelFixture) {
  const kept = await open(scope, model, folder)
  const rounding = await open(scope, model, withFloat32Kv(scope, folder))
  assert.deepEqual([kept.kvPrecision, rounding.kvPrecision], ['bf16', 'fp32'])
  return { kept, rounding }
}

const arraysOf = ({ layers }: KvPages) => layers.flatMap(({ k, v }) => [k, v])

describe('K/V in bf16', { skip }, () => {
  test('changes no score of any length, on any route, bit for bit', async (t) => {
    // The last has no relative bias, and no token where there is no event.
    const configs = [
      smallConfig(),
      smallConfig({ layers: 1, heads: 1, dqk: 33, dv: 17 }),
      smallConfig({ maxTokens: 600, dqk: 40, dv: 24, context: [], block: { rab: false } }),
      // As tiles.
      smallConfig({ dqk: 32, dv: 32 }),
      smallConfig({ maxTokens: 600, dqk: 64, dv: 32, context: [], block: { rab: false } }),
    ]
    for (const config of configs) {
      const model = exportModel(t, { config })
      const { kept, rounding } = await openBoth(t, model)
      const random = createRandom(config.dqk)
      for (const events of [0, 1, 15, 16, 17, 31]) {
        const tokens = randomTokens(model, random, { events, candidates: 37 })
        const { history, candidates, queryTime } = tokens
        const route = async (engine: Engine) => {
          const split = history.length >> 1
          const past = await engine.prefill(sliceTokens(history, 0, split))
          const rest = sliceTokens(history, split, history.length)
          const appended = await engine.prefill(rest, { handle: past, tokens: split })
          const shorter = await engine.prefill(sliceTokens(history, 0, 0), {
            handle: appended,
            tokens: Math.max(0, history.length - 1),
          })
          const imported = await engine.importKv(await engine.exportKv(appended))
          const handles = [past, appended, shorter, imported]
          const scores = handles.map((handle) => engine.score(handle, candidates, queryTime))
          const results = [...(await Promise.all(scores)), ...(await engine.rank([tokens]))]
          for (const handle of handles) engine.release(handle)
          return results
        }
        const [got, expected] = await Promise.all([route(kept), route(rounding)])
        assert.deepEqual(got, expected, `${events} events, ${config.dqk} wide`)
        // Hit, append and one pass agree.
        assert.deepEqual([got[3], got[4]], [got[1], got[1]])
      }
    }
  })

  test('is float32 K/V rounded once, in half the memory', async (t) => {
    const model = exportModel(t, {
      config: smallConfig({ maxTokens: 700, heads: 8, dqk: 64, dv: 64 }),
    })
    const { kept, rounding } = await openBoth(t, model)
    const { history } = randomTokens(model, createRandom(2), { events: 220, candidates: 1 })
    const pagesOf = async (engine: Engine) => {
      const handle = await engine.prefill(history)
      return { handle, arrays: arraysOf(await engine.exportKv(handle)) }
    }
    const [narrow, wide] = [await pagesOf(kept), await pagesOf(rounding)]
    assert.deepEqual(narrow.arrays, wide.arrays.map(toBf16))
    assert.equal(2 * narrow.handle.bytes, wide.handle.bytes)
  })

  test('as tiles stays what it was under appends and views of every length', async (t) => {
    const model = exportModel(t, {
      config: smallConfig({ maxTokens: 230, heads: 3, dqk: 32, dv: 64, context: [] }),
    })
    const { kept, rounding } = await openBoth(t, model)
    const random = createRandom(6)
    const tokens = randomTokens(model, random, { events: 100, candidates: 9 })
    const { history, candidates, queryTime } = tokens
    const below = (limit: number) => Math.floor(random() * limit)
    let handles = await Promise.all(
      [kept, rounding].map((engine) => engine.prefill(sliceTokens(history, 0, 0))),
    )
    const seen: { readonly handles: readonly KvHandle[]; readonly scores: Float32Array }[] = []
    const play = async (start: number, end: number) => {
      handles = await Promise.all(
        [kept, rounding].map((engine, i) =>
          engine.prefill(sliceTokens(history, start, end), {
            handle: handles[i] ?? assert.fail(),
            tokens: start,
          }),
        ),
      )
      const [got, expected] = await Promise.all(
        [kept, rounding].map((engine, i) =>
          engine.score(handles[i] ?? assert.fail(), candidates, queryTime),
        ),
      )
      assert.deepEqual(got, expected, `${start} tokens, then ${end - start}`)
      seen.push({ handles, scores: got ?? assert.fail() })
    }
    for (let end = 0; end < history.length; ) {
      const start = random() < 0.2 ? Math.max(0, end - below(40)) : end
      end = Math.min(history.length, start + 1 + below(5))
      await play(start, end)
    }
    // Nobody who came later wrote where these look.
    for (const { handles, scores } of seen) {
      const handle = handles[0] ?? assert.fail()
      assert.deepEqual(await kept.score(handle, candidates, queryTime), scores)
    }
  })

  test('stays rows with libraries that have no tiles, to the same scores', async (t) => {
    const model = exportModel(t, { config: smallConfig({ dqk: 32, dv: 32 }) })
    const older = tempFolder(t)
    const { libraries } = JSON.parse(readFileSync(`${folder}/kernels.json`, 'utf8'))
    const [{ kvTiles, ...library }] = libraries.filter(
      (each: { kvTiles?: boolean }) => each.kvTiles,
    )
    assert.equal(kvTiles, true)
    writeFileSync(`${older}/kernels.json`, JSON.stringify({ libraries: [library] }))
    symlinkSync(`${folder}/${library.file}`, `${older}/${library.file}`)
    const engines = [await open(t, model, older), await open(t, model, folder)]
    const tokens = randomTokens(model, createRandom(5), { events: 20, candidates: 7 })
    const [rows, tiles] = await Promise.all(
      engines.map(async (engine) => {
        const handle = await engine.prefill(tokens.history)
        const scores = await engine.score(handle, tokens.candidates, tokens.queryTime)
        return { precision: engine.kvPrecision, scores, pages: await engine.exportKv(handle) }
      }),
    )
    assert.deepEqual(rows, tiles)
    assert.equal(rows?.precision, 'bf16')
  })

  test('is kept by an engine that starts beside live traffic too', async (t) => {
    const model = exportModel(t, { config: smallConfig({ dqk: 64, dv: 32 }) })
    const one = { bundle: model.bundle, kernels: folder, workers: 1, threadsPerWorker: 1 }
    const engine = await createCapiEngine({ ...one, background: true })
    t.after(() => engine.close())
    const other = await open(t, model, folder)
    const tokens = randomTokens(model, createRandom(4), { events: 20, candidates: 5 })
    const scored = async (from: Engine) => {
      const handle = await from.prefill(tokens.history)
      return from.score(handle, tokens.candidates, tokens.queryTime)
    }
    assert.equal(engine.kvPrecision, 'bf16')
    assert.deepEqual(await scored(engine), await scored(other))
    await engine.background?.end()
    assert.deepEqual(await scored(engine), await scored(other))
  })

  test('is not for models whose attention no kernel computes', async (t) => {
    const model = exportModel(t, { config: parseConfig(SMALL_RESEARCH) })
    assert.equal((await open(t, model, folder)).kvPrecision, 'fp32')
  })

  test('through every codec and a real Redis is what was written, whoever reads it', {
    skip: NO_REDIS,
  }, async (t) => {
    const redis = await startRedis(t)
    // As rows, and as tiles.
    for (const heads of [{}, { dqk: 32, dv: 64 }]) {
      await throughRedis(t, redis.url, exportModel(t, { config: smallConfig(heads) }))
    }
  })

  async function throughRedis(t: Scope, url: string, model: ModelFixture) {
    const { manifest } = model.bundle
    const { kept, rounding } = await openBoth(t, model)
    const node = await createEngine({ bundle: model.bundle, engine: 'node', workers: 1 })
    t.after(() => node.close())
    const { history, candidates, queryTime } = randomTokens(model, createRandom(9), {
      events: 31,
      candidates: 20,
    })
    const scoreOf = async (engine: Engine, handle: KvHandle) => {
      const scores = await engine.score(handle, candidates, queryTime)
      engine.release(handle)
      return scores
    }
    const expected = await scoreOf(kept, await kept.prefill(history))
    for (const codec of KV_CODECS) {
      const openRedis = async (engine: Engine) => {
        let ready = 0
        const options = { target: parseRedisUrl(url), connections: 1, codec, ttlMs: 60_000 }
        const tier2 = await openTier2(options, manifest, engine, ({ kind }) => {
          if (kind === 'redisReady') ready++
        })
        await until('the connections', () => ready === 2)
        return tier2
      }
      const user = userHash(codec)
      const chain = digestChain(history)
      const writer = await openRedis(kept)
      const handle = await kept.prefill(history)
      const arrays = arraysOf(await kept.exportKv(handle))
      await new Promise<void>((resolve) => {
        writer.writes.offer(user, { handle, chain, done: resolve })
      })
      await until('the write', () => writer.stats().writes.written === 1)
      kept.release(handle)
      await writer.close()

      for (const engine of [kept, rounding, node]) {
        const tier2 = await openRedis(engine)
        const { remote } = tier2.cacheParts({
          policy: { kv: 'always' },
          prefillMs: () => 10_000,
          fetchMs: () => 1,
          observeFetch() {},
        })
        const found = await remote(user, history, chain, 0)
        assert.equal(found?.covered, history.length, `${codec}, ${engine.name}`)
        const fetched = found?.handle ?? assert.fail()
        const got = arraysOf(await engine.exportKv(fetched))
        const scores = await scoreOf(engine, fetched)
        // What the codec gives back is what it would give anywhere.
        const planes = await roundTrip(codec, arrays, engine.kvPrecision)
        assert.deepEqual(got, planes, `${codec}, ${engine.name}`)
        if (engine !== node && codec !== 'int8') assert.deepEqual(scores, expected, codec)
        assert.ok(largestDifference(scores, expected) < 3e-2, `${codec}, ${engine.name}`)
        await tier2.close()
      }
    }

    /** Rows of bf16 as a codec keeps them, in an engine's precision. */
    async function roundTrip(
      name: (typeof KV_CODECS)[number],
      arrays: readonly Uint8Array[],
      precision: Engine['kvPrecision'],
    ) {
      const widths = arrayWidths(kvShape(model.config))
      const writing = createKvCodec(name, 'bf16', widths)
      const reading = createKvCodec(name, precision, widths)
      const rows = widths.map((_, i) => {
        const bytes = (arrays[i]?.byteLength ?? 0) * (precision === 'fp32' ? 2 : 1)
        return new Uint8Array(bytes)
      })
      await reading.decode(await writing.encode(arrays), rows)
      await writing.close()
      await reading.close()
      return rows
    }
  }
})
