import assert from 'node:assert/strict'
import { existsSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { copyBundle, exportModel, randomTokens, reseal, tempFolder } from '../../test/fixtures.js'
import { openBundle } from '../manifest.js'
import { createRandom } from '../random.js'
import { createEngine, type EngineOptions } from './create.js'
import type { EngineEvent } from './engine.js'

const skip = existsSync('/dev/nvidia0') && 'this machine has a GPU'

describe('createEngine', () => {
  const model = exportModel({ after })
  const absent = `${tempFolder({ after })}/libonnxruntime.so.1`

  const open = async (options: Omit<EngineOptions, 'bundle'>) => {
    const events: EngineEvent[] = []
    const onEvent = (event: EngineEvent) => events.push(event)
    const engine = await createEngine({ bundle: model.bundle, onEvent, ...options })
    const { history, candidates, queryTime } = randomTokens(model, createRandom(1), {
      events: 3,
      candidates: 2,
    })
    const [logits] = await engine.rank([{ history, candidates, queryTime }])
    assert.equal(logits?.length, candidates.length)
    await engine.close()
    return { name: engine.name, events }
  }

  test('opens the engine that is named, capi when none is, and says so with its threads', async () => {
    for (const [engine, name] of [
      [undefined, 'capi/cpu'],
      ['node', 'node/cpu'],
      ['capi', 'capi/cpu'],
      ['auto', 'capi/cpu'],
    ] as const) {
      const threads = { workers: 1, threadsPerWorker: 2 }
      const opened = await open({ ...(engine && { engine }), ...threads })
      assert.deepEqual(opened, { name, events: [{ kind: 'engine', name, ...threads }] })
    }
  })

  test('falls back to node where capi does not load, and says why', async () => {
    const { name, events } = await open({ engine: 'auto', library: absent })
    assert.equal(name, 'node/cpu')
    const [event, ...others] = events
    assert.deepEqual(
      others.map(({ kind }) => kind),
      ['engine'],
    )
    assert.ok(event?.kind === 'engineFallback')
    assert.match(
      event.warning,
      /^engine node instead of capi: .+libonnxruntime\.so\.1 does not load/,
    )
  })

  test('says ENGINE_UNAVAILABLE when capi was named and does not load', async () => {
    await assert.rejects(open({ engine: 'capi', library: absent }), {
      code: 'ENGINE_UNAVAILABLE',
      message: /libonnxruntime\.so\.1 does not load: .+No such file/,
    })
  })

  test('runs capi on the CPU without CUDA where that was asked for, and says so', {
    skip,
  }, async () => {
    for (const engine of ['auto', 'capi'] as const) {
      const { name, events } = await open({ engine, provider: 'cuda', cudaFallback: true })
      assert.equal(name, 'capi/cpu')
      assert.deepEqual(
        events.map(({ kind }) => kind),
        ['provider', 'engine'],
      )
      const [event] = events
      assert.ok(event?.kind === 'provider')
      assert.match(event.warning, /CUDA.+; running on the CPU$/s)
    }
  })

  test('says ENGINE_UNAVAILABLE without CUDA otherwise, whatever engine', { skip }, async () => {
    for (const engine of ['auto', 'capi', 'node'] as const) {
      await assert.rejects(open({ engine, provider: 'cuda' }), {
        code: 'ENGINE_UNAVAILABLE',
        message: /CUDA/,
      })
    }
  })

  test('tries CUDA with node where capi does not load, before the CPU', { skip }, async () => {
    const { name, events } = await open({
      engine: 'auto',
      library: absent,
      provider: 'cuda',
      cudaFallback: true,
    })
    assert.equal(name, 'node/cpu')
    const warnings = events.map((event) => ('warning' in event ? event.warning : event.kind))
    assert.match(warnings[0] ?? '', /^engine node instead of capi: .+does not load/)
    assert.match(warnings[1] ?? '', /CUDA provider does not start/)
  })

  test('does not take a broken bundle for a missing library', async (t) => {
    const folder = copyBundle(t, model.bundle)
    writeFileSync(`${folder}/score.onnx`, 'no graph')
    reseal(folder)
    const events: EngineEvent[] = []
    const onEvent = (event: EngineEvent) => events.push(event)
    await assert.rejects(createEngine({ bundle: openBundle(folder), onEvent }), {
      code: 'MODEL_CONTRACT',
    })
    assert.deepEqual(events, [])
  })
})
