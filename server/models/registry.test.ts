import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Ranker } from '../../falcon/types.js'
import { deferred } from '../../model/deferred.js'
import { rankerOf } from '../../test/plain-ranker.js'
import { createModels } from './registry.js'

const FOLDER = '/models/a'
const settled = () => new Promise<void>((resolve) => setTimeout(resolve, 1))

describe('versions that follow one another in one folder', () => {
  test('serve on where one comes while the one before it still loads', async () => {
    let version = ''
    const loads = new Map<string, ReturnType<typeof deferred<Ranker>>>()
    const started: string[] = []
    const models = createModels({
      peek: () => ({ name: 'toy', version }),
      load: () => {
        const next = [...loads.keys()].find((each) => !started.includes(each)) ?? ''
        started.push(next)
        return loads.get(next)?.promise ?? Promise.reject(new Error('no load'))
      },
      maxModels: 8,
      rampMs: 0,
      onEvent() {},
    })
    const put = (name: string) => {
      version = name
      const load = deferred<Ranker>()
      loads.set(name, load)
      const loading = models.load(FOLDER)
      return {
        async arrives(isReplacement: boolean) {
          const ranker = rankerOf()
          load.resolve({ ...ranker, model: { ...ranker.model, name: 'toy', version: name } })
          await loading.ready
          if (isReplacement) models.replace(loading.version)
          // What is due at once has been done.
          await settled()
        },
      }
    }
    await put('one').arrives(false)
    const two = put('two')
    const three = put('three')
    await two.arrives(true)
    assert.equal(models.ranker()?.model.version, 'two')
    await three.arrives(true)
    assert.equal(models.ranker()?.model.version, 'three')
    assert.deepEqual(
      models.versions().map((each) => `${each.version} ${each.state}`),
      ['three ready'],
    )
    await models.close()
  })

  test('are let go of where the one before them comes back while they load', async () => {
    let version = 'old'
    const loads: ReturnType<typeof deferred<Ranker>>[] = []
    const models = createModels({
      peek: () => ({ name: 'toy', version }),
      load: () => {
        const load = deferred<Ranker>()
        loads.push(load)
        return load.promise
      },
      maxModels: 8,
      rampMs: 0,
      onEvent() {},
    })
    const arrives = async ({ ready }: ReturnType<typeof models.load>) => {
      await settled()
      const ranker = rankerOf()
      loads.at(-1)?.resolve({ ...ranker, model: { ...ranker.model, name: 'toy', version } })
      await ready
    }
    const old = models.load(FOLDER)
    await arrives(old)
    version = 'new'
    const next = models.load(FOLDER)
    // The folder holds what it held before: it is loaded, and stands there again.
    models.move(old.version, FOLDER)
    await arrives(next)
    models.replace(next.version)
    await settled()
    assert.equal(models.ranker()?.model.version, 'old')
    assert.deepEqual(
      models.versions().map((each) => `${each.version} ${each.state}`),
      ['old ready'],
    )
    await models.close()
  })
})
