import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../../random.js'
import { createBlocks } from './blocks.js'
import { findLibrary } from './library.js'
import { hostMemory } from './memory.js'
import { loadOrt, type Pointer } from './ort.js'
import { createSlab, slabMemory } from './slab.js'

const BASE = 0x7000_0000_0000n
const UNIT = 256

describe('createSlab', () => {
  test('gives parts that do not overlap, and is whole again when all are back', () => {
    for (let seed = 0; seed < 20; seed++) {
      const random = createRandom(seed)
      const below = (n: number) => Math.floor(random() * n)
      const total = UNIT * (1 + below(200))
      const slab = createSlab(BASE, total)
      const held = new Map<Pointer, number>()
      for (let step = 0; step < 2000; step++) {
        const bytes = 1 + below(20 * UNIT)
        const address = below(5) < 3 ? slab.allocate(bytes) : undefined
        if (address !== undefined) held.set(address, bytes)
        else {
          const given = [...held.keys()][below(held.size)]
          if (given === undefined) continue
          assert.ok(slab.free(given))
          held.delete(given)
        }
        const ends = [...held].map(([at, size]) => [at - BASE, at - BASE + BigInt(size)] as const)
        ends.sort(([a], [b]) => (a < b ? -1 : 1))
        ends.forEach(([start, end], i) => {
          assert.equal(start % BigInt(UNIT), 0n)
          assert.ok(end <= (ends[i + 1]?.[0] ?? BigInt(total)), `seed ${seed}, step ${step}`)
        })
        const inUse = [...held.values()].reduce(
          (sum, size) => sum + UNIT * Math.ceil(size / UNIT),
          0,
        )
        const free = slab.freeRanges().reduce((sum, range) => sum + range.bytes, 0)
        assert.equal(inUse + free, total)
      }
      for (const address of held.keys()) slab.free(address)
      assert.deepEqual(slab.freeRanges(), [{ offset: 0, bytes: total }])
    }
  })

  test('takes the shortest range that is long enough, and gives none where all are shorter', () => {
    const slab = createSlab(BASE, 10 * UNIT)
    const parts = [4, 1, 2, 1, 2].map((units) => slab.allocate(units * UNIT) ?? 0n)
    slab.free(parts[0] ?? 0n)
    slab.free(parts[2] ?? 0n)
    assert.equal(slab.allocate(2 * UNIT), parts[2])
    assert.equal(slab.allocate(5 * UNIT), undefined)
    assert.equal(slab.allocate(4 * UNIT), BASE)
    assert.equal(slab.allocate(1), undefined)
  })

  test('knows what is not its own', () => {
    const slab = createSlab(BASE, UNIT)
    assert.equal(slab.free(BASE), false)
    const address = slab.allocate(1) ?? 0n
    assert.equal(slab.free(address), true)
    assert.equal(slab.free(address), false)
  })
})

describe('blocks in a slab', () => {
  const ort = loadOrt(findLibrary())
  const LARGEST = 64

  test('take nothing more from the memory behind it, however many sizes come and go', async () => {
    const host = hostMemory(ort)
    let taken = 0
    const counted = {
      ...host,
      allocate(bytes: number) {
        taken++
        return host.allocate(bytes)
      },
    }
    const homeBytes = 20 * LARGEST * UNIT
    const home = await slabMemory(counted, homeBytes)
    const blocks = createBlocks({ home, overflow: host, homeBytes })
    const random = createRandom(7)
    const below = (n: number) => Math.floor(random() * n)
    const held = []
    let unused = 0
    let steps = 0
    for (let step = 0; step < 3000; step++) {
      const block = await blocks.allocate(1, UNIT * (1 + below(LARGEST)))
      blocks.endRun(block)
      held.push(block)
      const old = held.splice(below(held.length), held.length > 60 ? 1 : 0)[0]
      if (old !== undefined) blocks.leave(old)
      const again = held[below(held.length)]
      if (again !== undefined) {
        await blocks.beginRun(again)
        blocks.endRun(again)
      }
      const { homeBytes: used, spills } = blocks.stats()
      assert.ok(used <= homeBytes)
      if (spills > 100) {
        unused += 1 - used / homeBytes
        steps++
      }
    }
    assert.equal(taken, 1)
    // A block goes out when no free range holds the next one: some of them stay unused.
    assert.ok(steps > 1000)
    assert.ok(unused / steps < 0.25, `${unused / steps} of it unused on average`)
    for (const block of held) blocks.leave(block)
    await blocks.close()
    home.close()
    host.close()
  })

  test('go beyond it when all of it is in runs', async () => {
    const before = ort.live()
    const host = hostMemory(ort)
    const home = await slabMemory(host, UNIT)
    const blocks = createBlocks({ home, overflow: host, homeBytes: UNIT })
    const [first, second] = [await blocks.allocate(1, UNIT), await blocks.allocate(1, UNIT)]
    assert.deepEqual([first.memory, second.memory], [home, home])
    assert.equal(blocks.stats().homeBytes, 2 * UNIT)
    for (const block of [first, second]) {
      blocks.endRun(block)
      blocks.leave(block)
    }
    await blocks.close()
    home.close()
    host.close()
    assert.equal(ort.live(), before)
  })
})
