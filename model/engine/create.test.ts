import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { exportModel } from '../../test/fixtures.js'
import { createEngine, type EngineOptions } from './create.js'
import type { EngineEvent } from './engine.js'

const model = exportModel({ after })

/** What an engine is called and what was said on the way; it is closed. */
async function created(options: Omit<EngineOptions, 'bundle' | 'onEvent'>) {
  const events: EngineEvent[] = []
  const onEvent = (event: EngineEvent) => events.push(event)
  try {
    const engine = await createEngine({ bundle: model.bundle, ...options, onEvent })
    await engine.close()
    return { name: engine.name, events }
  } catch (error) {
    return { error, events }
  }
}

const kinds = (events: readonly EngineEvent[]) => events.map(({ kind }) => kind)

describe('createEngine', () => {
  test('starts what is asked for, capi by itself, and says so with its threads', async () => {
    for (const [engine, expected] of [
      [undefined, 'capi/cpu'],
      ['auto', 'capi/cpu'],
      ['capi', 'capi/cpu'],
      ['node', 'node/cpu'],
    ] as const) {
      const threads = { workers: 1, threadsPerWorker: 2 }
      const { name, events } = await created({ ...(engine && { engine }), ...threads })
      assert.equal(name, expected)
      assert.deepEqual(events, [{ kind: 'engine', name, ...threads }])
    }
  })

  describe('where there is no CUDA', { skip: existsSync('/dev/nvidia0') }, () => {
    const provider = 'cuda'

    test('runs on the CPU where that is allowed, with a warning and the threads of a CPU', async () => {
      const { name, events } = await created({ provider, cudaFallback: true })
      assert.equal(name, 'capi/cpu')
      assert.deepEqual(kinds(events), ['provider', 'engine'])
      const cpu = await created({})
      assert.deepEqual(events[1], cpu.events[0])
    })

    test('tries node after capi with a warning, unless capi was asked for', async () => {
      for (const [engine, said] of [
        ['auto', ['engineFallback']],
        ['capi', []],
        ['node', []],
      ] as const) {
        const { error, events } = await created({ provider, engine, workers: 1 })
        assert.ok(error instanceof Error && 'code' in error)
        assert.equal(error.code, 'ENGINE_UNAVAILABLE')
        assert.deepEqual(kinds(events), said)
      }
    })
  })
})
