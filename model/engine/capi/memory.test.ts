import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { createRandom } from '../../random.js'
import { findLibrary } from './library.js'
import { hostMemory } from './memory.js'
import { loadOrt } from './ort.js'

const BLOCKS = 400

/** Anonymous memory of this process that is in place. */
function anonymousBytes(): number {
  const status = readFileSync('/proc/self/status', 'utf8')
  return 1024 * Number(/^RssAnon:\s+(\d+) kB/m.exec(status)?.[1])
}

describe('hostMemory', { skip: process.platform !== 'linux' }, () => {
  const ort = loadOrt(findLibrary())
  const host = hostMemory(ort)
  after(() => host.close())
  const random = createRandom(3)

  test('gives back what is freed between blocks of other sizes that stay', async () => {
    const text = new Uint8Array(400_000)
    const blocks: { address: bigint; value: number }[] = []
    for (let value = 0; value < BLOCKS; value++) {
      const bytes = 200_000 + Math.floor(random() * 200_000)
      const address = await host.allocate(bytes)
      await host.write(address, text.fill(value % 256).subarray(0, bytes))
      blocks.push({ address, value: value % 256 })
    }
    const filled = anonymousBytes()
    for (const { address, value } of blocks) if (value % 2 === 1) host.free(address)
    const half = anonymousBytes()
    assert.ok(filled - half > (BLOCKS / 2) * 200_000, `${filled} bytes, then ${half}`)
    for (const { address, value } of blocks) {
      if (value % 2 === 1) continue
      assert.deepEqual(await host.read(address, 64), new Uint8Array(64).fill(value))
      host.free(address)
    }
    assert.ok(half - anonymousBytes() > (BLOCKS / 2) * 200_000)
  })

  test('has memory of every size, each apart from the others, and leaves nothing', async () => {
    const live = ort.live()
    const sizes = [1, 64, 2 ** 17 - 1, 2 ** 17, 2 ** 17 + 1, 2 ** 21 * 2 + 5]
    const addresses = await Promise.all(sizes.map((bytes) => host.allocate(bytes)))
    for (const [i, bytes] of sizes.entries()) {
      await host.write(addresses[i] ?? 0n, new Uint8Array(bytes).fill(i + 1))
    }
    for (const [i, bytes] of sizes.entries()) {
      assert.deepEqual(
        await host.read(addresses[i] ?? 0n, bytes),
        new Uint8Array(bytes).fill(i + 1),
      )
    }
    assert.equal(ort.live(), live + sizes.length)
    for (const address of addresses) host.free(address)
    assert.equal(ort.live(), live)
  })
})
