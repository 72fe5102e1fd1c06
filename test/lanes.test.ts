import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import { after, describe, test } from 'node:test'
import { largestDifference } from '../falcon/verify.js'
import { createCapiEngine } from '../model/engine/capi/engine.js'
import { lengths } from '../model/engine/capi/lanes.js'
import { createRandom } from '../model/random.js'
import { sliceTokens } from '../model/tokens.js'
import { exportModel, randomTokens, smallConfig } from './fixtures.js'

describe('lengths', () => {
  test('ascend to the given one without a gap that costs more than the step', () => {
    for (const least of [32, 64]) {
      for (let most = 1; most <= 5000; most += 7) {
        const found = lengths(least, most)
        assert.equal(found.at(-1), most)
        found.forEach((length, i) => {
          const before = found[i - 1] ?? 0
          assert.ok(length > before, `${least} ${most}: ${found}`)
          assert.ok(length <= Math.max(least, before * 1.42 + least), `${least} ${most}: ${found}`)
        })
      }
    }
  })
})

describe('lanes', () => {
  // On the CPU nothing is captured, but paddings, packed inputs and the lane's own K/V are the same.
  const config = smallConfig({ dqk: 6, dv: 6, maxTokens: 150 })
  const model = exportModel({ after }, { config })

  test('score and rank every length as the oracle does, whatever was loaded before', async (t) => {
    const engine = await createCapiEngine({ bundle: model.bundle, workers: 2, lanes: 2 })
    t.after(() => engine.close())
    await engine.warmUp({ historyTokens: [150], candidates: [70] })
    const random = createRandom(31)
    const { history, candidates, queryTime } = randomTokens(model, random, {
      events: 70,
      candidates: 70,
    })
    const { slots } = model.bundle.manifest.embedding
    const whole = await engine.prefill(history)
    const jobs = Array.from({ length: history.length + 1 }, async (_, n) => {
      const tokens = sliceTokens(history, 0, n)
      const rows = candidates.subarray(0, (1 + ((n * 31) % 70)) * slots)
      const handle = await engine.prefill(sliceTokens(history, 0, 0), { handle: whole, tokens: n })
      const [scored, [ranked = []]] = await Promise.all([
        engine.score(handle, rows, queryTime),
        engine.rank([{ history: tokens, candidates: rows, queryTime }]),
      ])
      engine.release(handle)
      const { logits } = model.reference(tokens, rows, queryTime)
      assert.ok(largestDifference(scored, logits) <= 1e-4, `score of ${n} tokens`)
      assert.ok(largestDifference(ranked, logits) <= 1e-4, `rank of ${n} tokens`)
    })
    await Promise.all(jobs)
    assert.equal(engine.stats().pendingJobs, 0)
  })

  test('leave what is larger than their shapes to a plain run', async (t) => {
    const engine = await createCapiEngine({ bundle: model.bundle, lanes: 1 })
    t.after(() => engine.close())
    await engine.warmUp({ historyTokens: [20], candidates: [4] })
    const { history, candidates, queryTime } = randomTokens(model, createRandom(32), {
      events: 60,
      candidates: 9,
    })
    const handle = await engine.prefill(history)
    const { logits } = model.reference(history, candidates, queryTime)
    assert.ok(largestDifference(await engine.score(handle, candidates, queryTime), logits) <= 1e-4)
    const [ranked = []] = await engine.rank([{ history, candidates, queryTime }])
    assert.ok(largestDifference(ranked, logits) <= 1e-4)
  })

  test('reject an aborted job with its reason and go on', async (t) => {
    const engine = await createCapiEngine({ bundle: model.bundle, lanes: 1 })
    t.after(() => engine.close())
    await engine.warmUp({ historyTokens: [150], candidates: [8] })
    const { history, candidates, queryTime } = randomTokens(model, createRandom(33), {
      events: 40,
      candidates: 8,
    })
    const handle = await engine.prefill(history)
    const expected = await engine.score(handle, candidates, queryTime)
    const jobs = Array.from({ length: 30 }, (_, i) => {
      const controller = new AbortController()
      const job = engine.score(handle, candidates, queryTime, controller.signal)
      if (i % 3 === 0) controller.abort(new Error(`reason ${i}`))
      return job
    })
    for (const [i, outcome] of (await Promise.allSettled(jobs)).entries()) {
      if (i % 3 === 0) {
        assert.ok(outcome.status === 'rejected')
        assert.equal(outcome.reason.message, `reason ${i}`)
      } else {
        assert.ok(outcome.status === 'fulfilled')
        assert.deepEqual(outcome.value, expected)
      }
    }
  })

  test('reject what is aborted before it comes, and listen to no signal once a job is done', async (t) => {
    const engine = await createCapiEngine({ bundle: model.bundle, lanes: 1 })
    t.after(() => engine.close())
    await engine.warmUp({ historyTokens: [150], candidates: [8] })
    const { history, candidates, queryTime } = randomTokens(model, createRandom(34), {
      events: 10,
      candidates: 8,
    })
    const handle = await engine.prefill(history)
    const reason = new Error('left')
    const gone = AbortSignal.abort(reason)
    await assert.rejects(engine.score(handle, candidates, queryTime, gone), reason)
    await assert.rejects(engine.rank([{ history, candidates, queryTime }], gone), reason)
    assert.equal(engine.stats().pendingJobs, 0)
    const { signal } = new AbortController()
    await engine.score(handle, candidates, queryTime, signal)
    await engine.rank([{ history, candidates, queryTime }], signal)
    assert.deepEqual(getEventListeners(signal, 'abort'), [])
  })
})
