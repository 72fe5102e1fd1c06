import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import koffi from 'koffi'
import { smallConfig } from '../../../test/fixtures.js'
import { builtKernels } from '../../../test/kernel-library.js'
import type { HstuConfig } from '../../config.js'
import { createRandom } from '../../random.js'
import type { KvPrecision } from '../codec/graphs.js'
import type { KvPages } from '../engine.js'
import { KV_ELEMENT_BYTES } from '../kv-shape.js'
import { createBlocks } from './blocks.js'
import { createKvStore, type KvEntry } from './kv-store.js'
import { type KvTiles, openKvTiles } from './kv-tiles.js'
import { findLibrary } from './library.js'
import { hostMemory, type TensorMemory } from './memory.js'
import { loadOrt, type Memory, type Pointer } from './ort.js'

const ROUNDS = 24
const STEPS = 250
const CALLERS = 4
const MAX_TOKENS = 200
const ort = loadOrt(findLibrary())
const { folder, skip } = builtKernels()
/** Where blocks are tiles heads fill them, and the longest history does not. */
const rowConfig = smallConfig({ maxTokens: MAX_TOKENS })
const tiledConfig = smallConfig({ maxTokens: MAX_TOKENS + 7, dqk: 32, dv: 64 })

/** The process's memory under another name; what is freed twice fails, what is used after has changed. */
function watched(host: TensorMemory) {
  const held = new Map<Pointer, number>()
  const memory: TensorMemory = {
    ...host,
    async allocate(bytes) {
      const address = await host.allocate(bytes)
      held.set(address, bytes)
      return address
    },
    free(address) {
      const bytes = held.get(address)
      assert.ok(bytes !== undefined, 'freed once, and where it was allocated')
      held.delete(address)
      new Uint8Array(koffi.view(address, bytes)).fill(0xa5)
      host.free(address)
    },
  }
  const bytes = () => [...held.values()].reduce((sum, each) => sum + each, 0)
  return { memory, bytes }
}

/** A store over two memories of which the first has a budget, as on a GPU. */
function openStore(homeBytes: number, precision: KvPrecision, tiles: KvTiles | undefined) {
  const config = tiles === undefined ? rowConfig : tiledConfig
  const host = hostMemory(ort)
  const home = watched(host)
  const overflow = watched(host)
  const blocks = createBlocks({ home: home.memory, overflow: overflow.memory, homeBytes })
  /** What the OrtValues of rows lie over. */
  const tensors = new Map<Pointer, { readonly at: Memory; readonly bytes: number }>()
  const recording = {
    ...ort,
    CreateTensorWithDataAsOrtValue(
      ...args: Parameters<typeof ort.CreateTensorWithDataAsOrtValue>
    ): Pointer {
      const value = ort.CreateTensorWithDataAsOrtValue(...args)
      tensors.set(value, { at: args[1], bytes: args[2] })
      return value
    },
  }
  const store = createKvStore({ ort: recording, blocks, host, config, precision, tiles })
  return { host, home, overflow, blocks, store, tensors }
}

/** Row of one token in region r: k.0, v.0, k.1, …; no two tokens have the same. */
function rowOf(token: number, r: number, bytes: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, j) => (token * 7 + (token >> 8) + r * 31 + j) & 255)
}

function pagesOf(tokens: readonly number[], precision: KvPrecision, config: HstuConfig): KvPages {
  const width = KV_ELEMENT_BYTES[precision]
  const { heads, dqk, dv, layers } = config
  const region = (r: number) => {
    const bytes = heads * (r % 2 === 0 ? dqk : dv) * width
    return new Uint8Array(Buffer.concat(tokens.map((token) => rowOf(token, r, bytes))))
  }
  return {
    tokens: tokens.length,
    times: Float64Array.from(tokens),
    layers: Array.from({ length: layers }, (_, i) => ({ k: region(2 * i), v: region(2 * i + 1) })),
  }
}

async function notEncoded(): Promise<void> {
  assert.fail('rows in the precision of the store')
}

describe('createKvStore', () => {
  test('keeps every entry bit for bit through appends, views, failures, spills and restores', async () => {
    await playRounds(undefined)
  })

  test('keeps every entry of tiles bit for bit, too', { skip }, async () => {
    await playRounds(openKvTiles(`${folder}/libperegrine_kernels_cpu.so`))
  })
})

async function playRounds(tiles: KvTiles | undefined): Promise<void> {
  const moves = { spills: 0, restores: 0 }
  for (let seed = 1; seed <= ROUNDS; seed++) {
    const { spills, restores } = await playRandomly(seed, tiles)
    moves.spills += spills
    moves.restores += restores
  }
  assert.ok(moves.spills > 1000 && moves.restores > 1000, JSON.stringify(moves))
}

type Known = { readonly entry: KvEntry; readonly tokens: readonly number[] }

/** Callers that do anything to entries at once, each entry beside a list of its tokens. */
async function playRandomly(
  seed: number,
  tiles: KvTiles | undefined,
): Promise<{ spills: number; restores: number }> {
  const config = tiles === undefined ? rowConfig : tiledConfig
  const random = createRandom(seed)
  const below = (limit: number) => Math.floor(random() * limit)
  const before = ort.live()
  const anyPrecision = (['fp16', 'fp32', 'bf16', 'fp32'] as const)[seed % 4] ?? 'fp32'
  const precision = tiles === undefined ? anyPrecision : 'bf16'
  // Rows of tiles are wider.
  const budget = tiles === undefined ? 40_000 : 400_000
  const opened = openStore(seed % 5 === 0 ? 0 : budget * (seed % 5), precision, tiles)
  const { host, home, overflow, blocks, store, tensors } = opened
  const entries: Known[] = []
  let nextToken = 1

  /** In a run, as the engine does it: held, at home, and there to its end. */
  const inRun = async <T>({ entry }: Known, work: () => Promise<T>): Promise<T> => {
    store.hold(entry)
    try {
      await blocks.beginRun(entry.block)
      const { address } = entry.block
      try {
        assert.equal(entry.block.memory, home.memory)
        return await work()
      } finally {
        assert.equal(entry.block.address, address, `seed ${seed}: moved in a run`)
        blocks.endRun(entry.block)
      }
    } finally {
      store.release(entry)
    }
  }
  const write = async (entry: KvEntry, tokens: readonly number[], start: number) => {
    entry.block.times.set(BigInt64Array.from(tokens.slice(start), BigInt), start)
    const { layers } = pagesOf(tokens.slice(start), precision, config)
    if (store.hasTiles) {
      const arrays = layers.flatMap(({ k, v }) => [k, v])
      return store.writeRows(entry.block, arrays, start)
    }
    const values = store.rows(entry, start, tokens.length, 'k.', 'v.')
    for (const [i, { k, v }] of layers.entries()) {
      for (const [name, bytes] of [[`k.${i}`, k] as const, [`v.${i}`, v] as const]) {
        const place = tensors.get(values[name] ?? 0n)
        assert.ok(place !== undefined && typeof place.at === 'bigint')
        assert.equal(place.bytes, bytes.length)
        await home.memory.write(place.at, bytes)
      }
    }
    for (const value of Object.values(values)) ort.ReleaseValue(value)
  }
  const prefill = async (past: Known | undefined) => {
    const kept = past === undefined ? 0 : below(past.tokens.length + 1)
    const count = random() < 0.2 ? 0 : below(Math.min(70, MAX_TOKENS - kept + 1))
    const own = Array.from({ length: count }, () => nextToken++)
    const tokens = [...(past?.tokens.slice(0, kept) ?? []), ...own]
    const extend = async () => {
      const from = past === undefined ? undefined : { entry: past.entry, tokens: kept }
      const entry = await store.extend(tokens.length, from)
      const { address } = entry.block
      await write(entry, tokens, kept)
      assert.equal(entry.block.address, address, `seed ${seed}: moved in a run`)
      if (random() < 0.2) store.abandon(entry, kept)
      else entries.push({ entry, tokens })
      blocks.endRun(entry.block)
    }
    await (past === undefined ? extend() : inRun(past, extend))
  }
  const check = (known: Known) =>
    inRun(known, async () => {
      const what = `seed ${seed}: ${known.tokens.length} tokens`
      const expected = pagesOf(known.tokens, precision, config)
      assert.deepEqual(await store.export(known.entry, 0), expected, what)
      // The values that runs see lie where the rows are now.
      for (const [i, { k, v }] of expected.layers.entries()) {
        const values = store.valuesOf(known.entry)
        for (const [name, bytes] of [[`k.${i}`, k] as const, [`v.${i}`, v] as const]) {
          const place = tensors.get(values[name] ?? 0n)
          assert.ok(place !== undefined && typeof place.at === 'bigint')
          const found = await home.memory.read(place.at, place.bytes)
          if (tiles === undefined) assert.deepEqual(found, bytes, what)
          else assert.ok(place.bytes >= bytes.length, what)
        }
      }
    })
  const take = (): Known | undefined => entries.splice(below(entries.length), 1)[0]

  let left = STEPS
  const call = async () => {
    while (left-- > 0) {
      const known = entries[below(entries.length)]
      const choice = below(8)
      if (known === undefined || choice === 0) await prefill(undefined)
      else if (choice <= 3) await prefill(known)
      else if (choice <= 5) await check(known)
      else if (choice === 6) {
        const tokens = Array.from({ length: below(30) }, () => nextToken++)
        entries.push({
          entry: await store.import(pagesOf(tokens, precision, config), notEncoded),
          tokens,
        })
      } else {
        const gone = take()
        if (gone !== undefined) store.release(gone.entry)
      }
    }
  }
  await Promise.all(Array.from({ length: CALLERS }, call))
  for (const known of entries) await check(known)
  const { homeBytes, overflowBytes, spills, restores } = blocks.stats()
  assert.equal(homeBytes, home.bytes(), `seed ${seed}`)
  assert.equal(overflowBytes, overflow.bytes(), `seed ${seed}`)
  // Half of them by their holders, the rest by close().
  for (let gone = take(); gone !== undefined && entries.length > 5; gone = take()) {
    store.release(gone.entry)
  }
  await blocks.close()
  const { homeBytes: atHome, overflowBytes: away } = blocks.stats()
  assert.deepEqual([atHome, away, home.bytes(), overflow.bytes()], [0, 0, 0, 0], `seed ${seed}`)
  host.close()
  assert.equal(ort.live(), before, `seed ${seed}`)
  return { spills, restores }
}
