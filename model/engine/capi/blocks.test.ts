import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { deferred } from '../../deferred.js'
import { type Block, createBlocks } from './blocks.js'
import { findLibrary } from './library.js'
import { hostMemory, type TensorMemory } from './memory.js'
import { loadOrt } from './ort.js'

const ort = loadOrt(findLibrary())
const BYTES = 1000

/** Room for `count` blocks at home. */
function openBlocks(
  count: number,
  changes: { home?: Partial<TensorMemory>; overflow?: Partial<TensorMemory> } = {},
) {
  const before = ort.live()
  const host = hostMemory(ort)
  const home = { ...host, ...changes.home }
  const overflow = { ...host, ...changes.overflow }
  const blocks = createBlocks({ home, overflow, homeBytes: count * BYTES })
  const add = async () => {
    const block = await blocks.allocate(10, BYTES)
    blocks.endRun(block)
    return block
  }
  const use = async (block: Block) => {
    await blocks.beginRun(block)
    blocks.endRun(block)
  }
  const close = async () => {
    await blocks.close()
    host.close()
    assert.equal(ort.live(), before)
    assert.equal(blocks.stats().homeBytes + blocks.stats().overflowBytes, 0)
  }
  return { home, overflow, blocks, add, use, close }
}

/** Every order of `items`. */
function* orders<T>(items: readonly T[]): Generator<readonly T[]> {
  if (items.length === 0) yield []
  for (const [i, item] of items.entries()) {
    for (const rest of orders(items.filter((_, j) => j !== i))) yield [item, ...rest]
  }
}

describe('createBlocks', () => {
  test('moves out the least recently used first, in every order of uses', async () => {
    for (const order of orders([0, 1, 2, 3])) {
      const { overflow, blocks, add, use, close } = openBlocks(4)
      const four = [await add(), await add(), await add(), await add()]
      for (const i of order) {
        const block = four[i]
        assert.ok(block !== undefined)
        await use(block)
      }
      for (let moved = 1; moved <= 4; moved++) {
        await add()
        const away = four.flatMap((block, i) => (block.memory === overflow ? [i] : []))
        assert.deepEqual(away, order.slice(0, moved).toSorted(), `used ${order}`)
      }
      assert.deepEqual(blocks.stats(), {
        homeBytes: 4 * BYTES,
        overflowBytes: 4 * BYTES,
        spills: 4,
        restores: 0,
      })
      await close()
    }
  })

  test('keeps what is in a run at home, over the budget if need be, and brings back what a run needs', async () => {
    const { home, overflow, blocks, add, close } = openBlocks(1)
    const first = await add()
    await blocks.beginRun(first)
    const second = await add()
    assert.equal(first.memory, home)
    assert.equal(blocks.stats().homeBytes, 2 * BYTES)
    blocks.endRun(first)
    const third = await add()
    assert.deepEqual([first.memory, second.memory, third.memory], [overflow, overflow, home])
    // Both at once: one after the other, and the second finds nothing that it could move out.
    await Promise.all([blocks.beginRun(first), blocks.beginRun(second)])
    assert.deepEqual([first.memory, second.memory, third.memory], [home, home, overflow])
    assert.deepEqual(blocks.stats(), {
      homeBytes: 2 * BYTES,
      overflowBytes: BYTES,
      spills: 3,
      restores: 2,
    })
    blocks.endRun(first)
    blocks.endRun(second)
    await close()
  })

  test('restores once for several runs that begin together', async () => {
    const { home, blocks, add, close } = openBlocks(1)
    const first = await add()
    await add()
    await Promise.all([1, 2, 3].map(() => blocks.beginRun(first)))
    assert.equal(first.memory, home)
    assert.equal(blocks.stats().restores, 1)
    for (let i = 0; i < 3; i++) blocks.endRun(first)
    await close()
  })

  test('brings back a block whose run begins while it moves out', async () => {
    const arrived = deferred<void>()
    const going = deferred<void>()
    let copies = 0
    const host = hostMemory(ort)
    const copy: TensorMemory['copy'] = async (to, from, bytes) => {
      await host.copy(to, from, bytes)
      if (copies++ > 0) return
      arrived.resolve()
      await going.promise
    }
    const { home, blocks, add, close } = openBlocks(1, { home: { copy } })
    const first = await add()
    const adding = add()
    await arrived.promise
    const beginning = blocks.beginRun(first)
    going.resolve()
    await Promise.all([adding, beginning])
    assert.equal(first.memory, home)
    assert.deepEqual([blocks.stats().spills, blocks.stats().restores], [1, 1])
    blocks.endRun(first)
    await close()
    host.close()
  })

  test('frees a block that its last user leaves while it moves, after the move', async () => {
    const arrived = deferred<void>()
    const going = deferred<void>()
    const host = hostMemory(ort)
    const copy: TensorMemory['copy'] = async (to, from, bytes) => {
      arrived.resolve()
      await going.promise
      await host.copy(to, from, bytes)
    }
    const { blocks, add, close } = openBlocks(1, { home: { copy } })
    const first = await add()
    const adding = add()
    await arrived.promise
    blocks.leave(first)
    assert.equal(blocks.stats().homeBytes, BYTES)
    going.resolve()
    await adding
    assert.deepEqual([blocks.stats().homeBytes, blocks.stats().overflowBytes], [BYTES, 0])
    await close()
    host.close()
  })

  test('is as before when memory runs out or a copy fails, and works once they do again', async () => {
    const fault = new Error('no memory')
    const broken = { home: false, overflow: false, copy: false }
    const host = hostMemory(ort)
    const allocate = (which: 'home' | 'overflow') => (bytes: number) => {
      if (broken[which]) throw fault
      return host.allocate(bytes)
    }
    const copy: TensorMemory['copy'] = async (to, from, bytes) => {
      if (broken.copy) throw fault
      return host.copy(to, from, bytes)
    }
    const { home, overflow, blocks, add, use, close } = openBlocks(1, {
      home: { allocate: allocate('home'), copy },
      overflow: { allocate: allocate('overflow') },
    })
    const first = await add()
    for (const what of ['overflow', 'copy'] as const) {
      broken[what] = true
      const stats = blocks.stats()
      const live = ort.live()
      await assert.rejects(add(), fault)
      assert.deepEqual([blocks.stats(), ort.live()], [stats, live], what)
      assert.equal(first.memory, home)
      broken[what] = false
    }
    const second = await add()
    assert.deepEqual([first.memory, second.memory], [overflow, home])
    for (const what of ['overflow', 'copy', 'home'] as const) {
      broken[what] = true
      const live = ort.live()
      await assert.rejects(use(first), fault)
      assert.equal(first.memory, overflow)
      assert.deepEqual([first.users, first.runs], [1, 0], what)
      assert.equal(ort.live(), live)
      broken[what] = false
    }
    await use(first)
    assert.equal(first.memory, home)
    await close()
    host.close()
  })

  test('moves out what is idle where home has less memory than the budget', async () => {
    const host = hostMemory(ort)
    let left = 2
    const allocate = (bytes: number) => {
      if (left === 0) throw new Error('no memory')
      left--
      return host.allocate(bytes)
    }
    const free = (address: bigint) => {
      left++
      host.free(address)
    }
    const { home, overflow, blocks, add, use, close } = openBlocks(9, { home: { allocate, free } })
    const three = [await add(), await add(), await add()]
    const [first, second, third] = three
    assert.ok(first !== undefined && second !== undefined && third !== undefined)
    const places = () => three.map(({ memory }) => (memory === home ? 'home' : 'overflow'))
    assert.deepEqual(places(), ['overflow', 'home', 'home'])
    await use(first)
    assert.deepEqual(places(), ['home', 'overflow', 'home'])
    await blocks.beginRun(first)
    await blocks.beginRun(third)
    await assert.rejects(add(), /no memory/)
    await assert.rejects(use(second), /no memory/)
    assert.deepEqual([second.memory, second.users, second.runs], [overflow, 1, 0])
    blocks.endRun(third)
    await use(second)
    assert.deepEqual(places(), ['home', 'home', 'overflow'])
    assert.equal(blocks.stats().homeBytes, 2 * BYTES)
    blocks.endRun(first)
    await close()
    host.close()
  })

  test('moves nothing without an overflow', async () => {
    const host = hostMemory(ort)
    const blocks = createBlocks({ home: host, homeBytes: 1 })
    const first = await blocks.allocate(10, BYTES)
    blocks.endRun(first)
    const second = await blocks.allocate(10, BYTES)
    blocks.endRun(second)
    assert.deepEqual(blocks.stats(), {
      homeBytes: 2 * BYTES,
      overflowBytes: 0,
      spills: 0,
      restores: 0,
    })
    blocks.leave(first)
    blocks.leave(second)
    assert.equal(blocks.stats().homeBytes, 0)
    await blocks.close()
    host.close()
  })
})
