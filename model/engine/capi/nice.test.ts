import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { exportModel } from '../../../test/fixtures.js'
import { until } from '../../../test/redis.js'
import { createCapiEngine } from './engine.js'
import { niceThreads, poolThreadsOf } from './nice.js'

/** Niceness of each of this process's threads, by id. */
function nicenesses(): Map<number, number> {
  return new Map(
    readdirSync('/proc/self/task').map((id) => {
      const stat = readFileSync(`/proc/self/task/${id}/stat`, 'utf8')
      // Field 19; the name before it, in brackets, may hold spaces.
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      return [Number(id), Number(fields[16])]
    }),
  )
}

describe('niceThreads', () => {
  const model = exportModel({ after })

  test('lowers the pool’s threads and those that sessions start from them, not the main one', async () => {
    const before = nicenesses()
    const main = before.get(process.pid) ?? 0
    await niceThreads()
    const pool = nicenesses()
    const lowered = [...pool].filter(([, niceness]) => niceness === 5).map(([id]) => id)
    assert.equal(lowered.length, 4)
    assert.equal(pool.get(process.pid), main)
    const engine = await createCapiEngine({
      bundle: model.bundle,
      workers: 2,
      threadsPerWorker: 2,
    })
    const all = nicenesses()
    await engine.close()
    const left = nicenesses()
    // What ends with the sessions is theirs: two threads beside the caller's for each of three.
    const started = [...all].filter(([id]) => !left.has(id))
    assert.equal(started.length, 3 * 2)
    for (const [id, niceness] of started) assert.equal(niceness, 5, `thread ${id}`)
    for (const id of lowered) assert.equal(all.get(id), 5)
    assert.equal(all.get(process.pid), main)
    await until('the threads that make runs to be lowered', () => {
      const others = [...nicenesses()].filter(([id]) => !lowered.includes(id))
      return others.filter(([, niceness]) => niceness === 5).length === 2
    })
  })
})

describe('poolThreadsOf', () => {
  test('reads the size of the pool as libuv does', () => {
    for (const [text, threads] of [
      [undefined, 4],
      ['', 1],
      ['0', 1],
      ['much', 1],
      ['8', 8],
      ['9999', 1024],
    ] as const) {
      assert.equal(poolThreadsOf(text), threads, String(text))
    }
  })
})
