import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Histogram, Registry } from 'prom-client'
import { appOf } from '../../../test/plain-ranker.js'
import { parseExposition, quantile, total, totalsBy } from './exposition.js'
import { figuresOf } from './figures.js'

describe('parseExposition', () => {
  test('reads names, labels with escapes, and values; leaves comments out', () => {
    const text = [
      '# HELP a_total What, "really"',
      '# TYPE a_total counter',
      'a_total{route="/v1/rank",why="a\\"b\\\\c\\nd",} 3',
      'a_total{route="none"} 4 1700000000',
      'b +Inf',
      '',
    ].join('\n')
    const samples = parseExposition(text)
    assert.deepEqual(
      samples.map(({ name, value }) => [name, value]),
      [
        ['a_total', 3],
        ['a_total', 4],
        ['b', Number.POSITIVE_INFINITY],
      ],
    )
    assert.equal(samples[0]?.labels.get('why'), 'a"b\\c\nd')
    assert.equal(total(samples, 'a_total'), 7)
    assert.equal(total(samples, 'a_total', { route: 'none' }), 4)
    assert.equal(total(samples, 'c'), undefined)
    assert.deepEqual(
      [...totalsBy(samples, 'a_total', 'route')],
      [
        ['/v1/rank', 3],
        ['none', 4],
      ],
    )
  })
})

describe('quantile', () => {
  test('lies within its bucket, over the series with these labels', async () => {
    const registers = [new Registry()]
    const histogram = new Histogram({
      name: 'h',
      help: 'h',
      labelNames: ['route'],
      buckets: [1, 2, 4],
      registers,
    })
    for (const value of [0.5, 1.5, 1.6, 3]) histogram.observe({ route: 'a' }, value)
    histogram.observe({ route: 'b' }, 100)
    const samples = parseExposition((await registers[0]?.metrics()) ?? '')
    assert.equal(quantile(samples, 'h', 0.5, { route: 'a' }), 1.5)
    assert.equal(quantile(samples, 'h', 1, { route: 'a' }), 4)
    assert.equal(quantile(samples, 'h', 0.5, { route: 'b' }), 4, 'beyond the last bound')
    assert.equal(quantile(samples, 'h', 0.5, { route: 'c' }), undefined)
  })
})

describe('the metrics tab', () => {
  test('says what the service counted', async (t) => {
    const app = await appOf()
    t.after(() => app.close())
    const scrape = async (atMs: number) => {
      return { atMs, samples: parseExposition((await app.inject('/metrics')).body) }
    }
    const before = await scrape(0)
    for (let i = 0; i < 4; i++) {
      const payload = { user: { id: 'u' }, candidates: ['a', 'b'] }
      await app.inject({ method: 'POST', url: '/v1/rank', payload })
    }
    await app.inject({ method: 'POST', url: '/v1/rank', payload: {} })
    const figures = new Map(figuresOf(await scrape(2000), before).map((f) => [f.title, f]))
    assert.equal(figures.get('Rankings')?.big, '2.50 /s')
    assert.deepEqual(figures.get('Rankings')?.lines, [
      '5 requests to /v1/rank',
      '8 candidates scored',
    ])
    assert.equal(figures.get('K/V found')?.big, '100 %')
    assert.deepEqual(figures.get('K/V found')?.lines, [
      'stale 4',
      '32 tokens reused, 8 tokens prefilled',
    ])
    // Parsing is timed for real, and on a busy machine takes longer than the 4 ms of the heads.
    assert.match(figures.get('Slowest stage, mean')?.big ?? '', /^(heads 4|parse \d\S*) ms$/)
    assert.equal(figures.get('Workers')?.big, '2')
    assert.deepEqual(figures.get('Errors')?.lines, ['INVALID_REQUEST 1'])
  })

  test('has figures before anything was ranked', async (t) => {
    const app = await appOf()
    t.after(() => app.close())
    const samples = parseExposition((await app.inject('/metrics')).body)
    const figures = figuresOf({ atMs: 0, samples }, undefined)
    assert.equal(figures.find(({ title }) => title === 'Rankings')?.big, '0 /s')
    assert.equal(figures.find(({ title }) => title === 'K/V found')?.big, '–')
  })
})
