import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { after, describe, test } from 'node:test'
import { exportModel } from '../../../test/fixtures.js'
import { decoderGraph } from '../codec/graphs.js'
import { findLibrary } from './library.js'
import { hostMemory } from './memory.js'
import { loadOrt } from './ort.js'
import { startRunThreads } from './run-threads.js'
import { createScope } from './scope.js'
import { createEnv, openGraph } from './sessions.js'

/** Far more than the ring has room for. */
const RUNS = 2000
const TOKENS = 4
const WIDTH = 3

describe('startRunThreads', () => {
  test('makes two thousand runs that are given at once, each with its own result or error', async () => {
    const plain = loadOrt(findLibrary())
    const before = plain.live()
    const ort = { ...plain, run: startRunThreads(findLibrary(), 3) }
    const env = createEnv(ort)
    const host = hostMemory(ort)
    const session = await openGraph(ort, env, decoderGraph('fp32', 'fp32', 1), undefined)
    const options = ort.CreateRunOptions()
    const scope = createScope(ort, host)
    const results = await Promise.allSettled(
      Array.from({ length: RUNS }, async (_, i) => {
        const given = new Float32Array(TOKENS * WIDTH).fill(i)
        const got = new Float32Array(TOKENS * WIDTH)
        // Every tenth has one token too few for what it gets.
        const tokens = i % 10 === 0 ? TOKENS - 1 : TOKENS
        await session.run(
          { 'plane.0': scope.tensor(given, [TOKENS, WIDTH]) },
          { 'x.0': scope.tensor(got.subarray(0, tokens * WIDTH), [tokens, WIDTH]) },
          options,
        )
        return got
      }),
    )
    for (const [i, result] of results.entries()) {
      if (i % 10 === 0) {
        assert.ok(result.status === 'rejected')
        assert.equal(result.reason.code, 'MODEL_CONTRACT')
        assert.match(result.reason.message, /^inference failed: /)
      } else {
        assert.ok(result.status === 'fulfilled')
        assert.deepEqual(result.value, new Float32Array(TOKENS * WIDTH).fill(i))
      }
    }
    scope.end()
    ort.ReleaseRunOptions(options)
    await session.release()
    host.close()
    ort.ReleaseEnv(env)
    assert.equal(ort.live(), before)
  })

  test('lets the process end while they are idle, and has the same ones for every engine', () => {
    const { bundle } = exportModel({ after })
    const url = (path: string) => JSON.stringify(new URL(path, import.meta.url).href)
    const script = `
      import { readdirSync } from 'node:fs'
      import { createCapiEngine } from ${url('./engine.js')}
      import { openBundle } from ${url('../../manifest.js')}
      import { zeroTokens } from ${url('../../tokens.js')}
      const bundle = openBundle(process.argv[1])
      const tokens = zeroTokens(4, bundle.manifest.embedding.slots)
      const threads = []
      for (let i = 0; i < 3; i++) {
        const engine = await createCapiEngine({ bundle, workers: 2 })
        await engine.prefill(tokens)
        threads.push(readdirSync('/proc/self/task').length)
        if (i < 2) await engine.close()
      }
      console.log(new Set(threads).size)`
    const args = ['--input-type=module', '-e', script, bundle.folder]
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
    assert.deepEqual({ status, stdout, stderr }, { status: 0, stdout: '1\n', stderr: '' })
  })
})
