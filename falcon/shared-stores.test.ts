import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { exportModel, randomRequest, smallConfig } from '../test/fixtures.js'
import { loadRanker } from './load.js'
import { shareStores } from './shared-stores.js'

const LOAD = { engine: 'node', workers: 1, microBatchSize: 4, kv: 'always' } as const

describe('two models over shared stores', () => {
  const one = exportModel({ after })
  const two = exportModel(
    { after },
    { config: smallConfig({ actions: ['click', 'like', 'share', 'unobserved', 'moved', 'buy'] }) },
  )
  const input = {
    ...randomRequest(one.config, createRandom(1), { events: 0, candidates: 3 }),
    histories: [],
    time: 100,
  }

  test('have the same histories, take each other’s actions, and forget together', async (t) => {
    const shared = shareStores(undefined, {}, () => {})
    t.after(() => shared.close())
    const first = await loadRanker({ ...LOAD, bundle: one.bundle.folder, shared })
    t.after(() => first.close())
    const bought = { item: '1', time: 5, actions: ['buy'] }
    await assert.rejects(first.appendEvents('u1', [bought]), { code: 'INVALID_REQUEST' })
    const second = await loadRanker({ ...LOAD, bundle: two.bundle.folder, shared })
    await first.appendEvents('u1', [bought])
    assert.deepEqual(await second.eventsOf('u1'), [bought])
    for (const ranker of [first, second]) {
      const { historyTokens, warnings } = await ranker.rank(input, { useStored: true })
      assert.equal(historyTokens, one.config.context.length + 2)
      assert.equal(
        warnings.some(({ code }) => code === 'UNKNOWN_ACTION'),
        ranker === first,
      )
      assert.ok((await ranker.kvOf('u1')).memory > 0)
    }
    await first.forget('u1')
    assert.deepEqual(await second.eventsOf('u1'), [])
    for (const ranker of [first, second]) assert.equal((await ranker.kvOf('u1')).memory, 0)

    await first.appendEvents('u1', [{ ...bought, time: 6 }])
    await second.close()
    assert.equal(
      (await first.eventsOf('u1')).length,
      1,
      'a model that closes takes no history along',
    )
    await assert.rejects(first.appendEvents('u1', [bought]), { code: 'INVALID_REQUEST' })
  })
})
