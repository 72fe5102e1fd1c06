import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { tempFolder } from '../../test/fixtures.js'
import { readInteractions } from './interactions.js'
import { rankIn, retrievalQuality } from './retrieval-metrics.js'

describe('retrievalQuality', () => {
  const close = (got: number | undefined, wanted: number) =>
    assert.ok(Math.abs((got ?? Number.NaN) - wanted) < 1e-12, `${got} is not ${wanted}`)

  test('counts hits up to the k-th place and discounts them by log2(rank + 1)', () => {
    const quality = retrievalQuality([1, 3, 11, Number.POSITIVE_INFINITY])
    close(quality['HR@10'], 2 / 4)
    close(quality['HR@50'], 3 / 4)
    close(quality['HR@200'], 3 / 4)
    close(quality['NDCG@10'], (1 + 1 / 2) / 4)
    close(quality['NDCG@200'], (1 + 1 / 2 + 1 / Math.log2(12)) / 4)
  })

  test('takes the k-th place in and leaves the next out', () => {
    const quality = retrievalQuality([10, 11, 50, 51, 200, 201])
    close(quality['HR@10'], 1 / 6)
    close(quality['HR@50'], 3 / 6)
    close(quality['HR@200'], 5 / 6)
    close(quality['NDCG@10'], 1 / Math.log2(11) / 6)
  })

  test('is 1 where every item comes first, 0 where none is found', () => {
    assert.deepEqual(new Set(Object.values(retrievalQuality([1, 1]))), new Set([1]))
    const none = retrievalQuality([Number.POSITIVE_INFINITY])
    assert.deepEqual(new Set(Object.values(none)), new Set([0]))
  })

  test('ranks are places in the list from 1', () => {
    assert.equal(rankIn(['7', '3'], '3'), 2)
    assert.equal(rankIn(['7', '3'], '5'), Number.POSITIVE_INFINITY)
  })
})

describe('readInteractions', () => {
  const text = [
    'user,item,rating,ts',
    ...['a,x,5,30', 'b,y,4,-1', 'a,z,3,10', 'a,w,3,30', 'b,x,1,-1', 'c,x,2,5'],
  ].join('\n')

  test('holds out the last event by time, then by the order of the file', async (t) => {
    const folder = tempFolder(t)
    writeFileSync(`${folder}/log.csv`, text)
    writeFileSync(`${folder}/log.csv.gz`, gzipSync(text))
    for (const name of ['log.csv', 'log.csv.gz']) {
      assert.deepEqual(await readInteractions(`${folder}/${name}`), [
        {
          id: 'a',
          history: [
            { item: 'z', time: 10 },
            { item: 'x', time: 30 },
          ],
          target: { item: 'w', time: 30 },
        },
        { id: 'b', history: [{ item: 'y', time: 0 }], target: { item: 'x', time: 0 } },
      ])
    }
  })

  test('refuses a file without the columns', async (t) => {
    const folder = tempFolder(t)
    writeFileSync(`${folder}/log.csv`, 'user,item,when\na,x,1\n')
    const refused = { code: 'INVALID_REQUEST', message: /columns user, item and ts/ }
    await assert.rejects(readInteractions(`${folder}/log.csv`), refused)
    await assert.rejects(readInteractions(`${folder}/none.csv`), { code: 'INVALID_REQUEST' })
  })

  test('refuses rows that are none, what is no gzip, and a file with nobody to hold out', async (t) => {
    const file = `${tempFolder(t)}/log.csv`
    const refused = async (rows: string, message: RegExp, name = file) => {
      writeFileSync(name, rows)
      await assert.rejects(readInteractions(name), { code: 'INVALID_REQUEST', message })
    }
    const head = 'user,item,ts\n'
    await refused(`${head}a,x,1\na,y,\n`, /got \{"user":"a","item":"y","ts":""\}/)
    await refused(`${head}a,x,1\na,y,1e3\n`, /got .*"1e3"/)
    await refused(`${head}a,,1\n`, /got .*"item":""/)
    await refused(`${head}a,x,1\na,y\n`, /log\.csv must have columns .*Invalid Record Length/)
    await refused(`${head}a,x,1\n`, /a user with two events or more, got 1 users with fewer/)
    await refused('', /got 0 users/)
    await refused(head, /log\.csv\.gz must have columns .*incorrect header check/, `${file}.gz`)
  })
})
