import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { type Json, SMALL, tempFolder } from '../test/fixtures.js'
import { show } from './check.js'
import { blockOf, parseConfig, readConfig } from './config.js'
import { RankError } from './errors.js'

const copy = (): Json => JSON.parse(JSON.stringify(SMALL))

function refused(value: unknown, message: RegExp, what = ''): void {
  assert.throws(() => parseConfig(value), { code: 'CONFIG_INVALID', message }, what)
}

/** `copy()` with one change made to it. */
function changed(change: (config: Json) => void): Json {
  const config = copy()
  change(config)
  return config
}

describe('parseConfig', () => {
  test('takes the golden cases', () => {
    for (const name of ['plain', 'auxiliary', 'limit']) {
      readConfig(`test/golden/paper/${name}/config.json`)
    }
  })

  test('names every field that is missing', () => {
    const optional = ['name', 'unobservedAction']
    for (const field of Object.keys(SMALL).filter((name) => !optional.includes(name))) {
      refused(
        changed((config) => delete config[field]),
        new RegExp(`lacks the fields: ${field}`),
      )
    }
    for (const field of optional) parseConfig(changed((config) => delete config[field]))
  })

  test('refuses a value of another type in every field, with the field’s JSON pointer', () => {
    const junk = [null, true, -1, 0, 1.5, Number.NaN, Infinity, 1e30, '', {}, { a: 1 }, [1], [[]]]
    for (const field of Object.keys(SMALL)) {
      let refusals = 0
      for (const value of junk) {
        try {
          parseConfig(changed((config) => Object.assign(config, { [field]: value })))
        } catch (error) {
          refusals++
          assert.ok(error instanceof RankError && error.code === 'CONFIG_INVALID', field)
          assert.ok(error.path?.startsWith(`/${field}`), `${field}: ${error.path}`)
        }
      }
      assert.ok(refusals >= junk.length - 2, field)
    }
  })

  test('refuses unknown fields, inherited-looking ones too', () => {
    for (const field of ['extra', 'constructor', '__proto__', 'toString']) {
      const text = JSON.stringify(SMALL).replace('{', `{"${field}":1,`)
      refused(JSON.parse(text), new RegExp(`unknown fields: ${field}`), field)
    }
    refused(
      changed((c) => Object.assign(c.itemFeatures[0], { x: 1 })),
      /config \/itemFeatures\/0 has unknown fields: x/,
    )
  })

  test('refuses what is no object', () => {
    for (const value of [null, undefined, 1, 'x', [], true]) refused(value, /config \//)
  })

  test('holds names, tables and encodings to each other', () => {
    const cases: readonly (readonly [(config: Json) => void, RegExp])[] = [
      [
        (c) => c.itemFeatures.push({ name: 'tag', rows: 2 }),
        /itemFeatures must have unique names, got "tag" twice/,
      ],
      [(c) => c.context.push({ name: 'country', rows: 2 }), /context must have unique names/],
      [(c) => c.tasks.push({ name: 'like', type: 'binary' }), /tasks must have unique names/],
      [(c) => c.actions.push('click'), /actions must have unique names/],
      [
        (c) => Object.assign(c, { itemFeatures: [{ name: 'video', rows: 5 }], auxiliary: [] }),
        /itemId must name an item feature, got "id"/,
      ],
      [(c) => Object.assign(c, { itemId: 'none' }), /itemId must name an item feature, got "none"/],
      [
        (c) => Object.assign(c, { unobservedAction: 'x' }),
        /unobservedAction must be one of actions/,
      ],
      [
        (c) => Object.assign(c, { weights: { click: 1, x: 2 } }),
        /weights must be keyed by task names, got "x"/,
      ],
      [(c) => Object.assign(c, { weights: { constructor: 2 } }), /got "constructor"/],
      [
        (c) => Object.assign(c, { maxTokens: 1 }),
        /maxTokens must hold the 2 context tokens, got 1/,
      ],
      [(c) => Object.assign(c, { timeBuckets: 64 }), /timeBuckets/],
      [(c) => Object.assign(c, { variant: 'other' }), /variant/],
      [(c) => Object.assign(c, { block: { alpha: 0 } }), /block\/alpha/],
      [(c) => Object.assign(c, { block: { gate: 'x' } }), /block has unknown fields: gate/],
      [
        (c) => Object.assign(c.auxiliary[0], { action: 'x' }),
        /auxiliary\/0\/action must be one of actions/,
      ],
      [(c) => delete c.auxiliary[0].rows, /auxiliary\/0\/rows must be given/],
      [
        (c) => Object.assign(c.auxiliary[0], { table: 'layers.0.uvqk' }),
        /table must be item\.<feature> or aux\.<name>/,
      ],
      [
        (c) => Object.assign(c.auxiliary[0], { table: 'item.none' }),
        /table must be item\.<feature>/,
      ],
      [
        (c) => Object.assign(c.auxiliary[0], { table: 'item.tag' }),
        /takes rows and encoding from item\.tag/,
      ],
      [
        (c) => c.auxiliary.push({ name: 'b', table: 'aux.city', rows: 7, action: 'moved' }),
        /must be the same for all series of aux\.city, 6, got 7/,
      ],
    ]
    for (const [change, message] of cases) refused(changed(change), message, String(message))
    // Thirty action types fill the mask; one more would reach the sign bit.
    const names = (count: number) => Array.from({ length: count }, (_, i) => `a${i}`)
    const many = (count: number) =>
      changed((c) => Object.assign(c, { actions: ['unobserved', 'moved', ...names(count - 2)] }))
    parseConfig(many(30))
    refused(many(31), /actions/)
  })

  test('holds bucket and hash encodings to their rows, in every kind of table', () => {
    const lists = [
      (c: Json) => c.context[0],
      (c: Json) => c.itemFeatures[1],
      (c: Json) => c.auxiliary[0],
    ]
    for (const feature of lists) {
      const give = (rows: number, encoding: object) =>
        changed((c) => Object.assign(feature(c), { rows, encoding }))
      parseConfig(give(4, { kind: 'bucket', edges: [1, 2] }))
      parseConfig(give(2, { kind: 'bucket', edges: [] }))
      parseConfig(give(2, { kind: 'hash' }))
      refused(give(3, { kind: 'bucket', edges: [1, 2] }), /needs edges \+ 2 = 4 rows, got 3/)
      refused(give(5, { kind: 'bucket', edges: [1, 2] }), /needs edges \+ 2 = 4 rows, got 5/)
      refused(give(4, { kind: 'bucket', edges: [2, 2] }), /strictly ascending/)
      refused(give(4, { kind: 'bucket', edges: [2, 1] }), /strictly ascending/)
      refused(give(1, { kind: 'hash' }), /at least 2 rows to hash into, got 1/)
      refused(give(4, { kind: 'bucket' }), /encoding/)
      refused(give(4, { kind: 'vocabulary' }), /encoding/)
      refused(give(4, { kind: 'other' }), /encoding/)
    }
  })

  test('overrides the constants of a block one by one', () => {
    const config = parseConfig({ ...SMALL, block: { alpha: 0.5, rab: false } })
    assert.deepEqual(blockOf(config), {
      silu: 'uvqk',
      alpha: 0.5,
      rab: false,
      normInAffine: true,
      normAttnAffine: true,
      combine: 'gate',
      uvqkBias: false,
      outBias: true,
    })
  })
})

describe('readConfig', () => {
  test('names a file that is missing, no JSON or no config', (t) => {
    const folder = tempFolder(t)
    for (const text of ['', '{', '\u0000', '[]']) {
      writeFileSync(`${folder}/config.json`, text)
      assert.throws(() => readConfig(`${folder}/config.json`), { code: 'CONFIG_INVALID' })
    }
    assert.throws(() => readConfig(`${folder}/none.json`), {
      code: 'CONFIG_INVALID',
      message: /cannot read .+none\.json as JSON/,
    })
  })
})

describe('show', () => {
  test('quotes any value in at most 81 characters, however long or deep', () => {
    let deep: unknown = 1
    for (let i = 0; i < 100_000; i++) deep = [deep]
    for (const value of [deep, 'x'.repeat(1000), undefined, Number.NaN, 5n, null, { a: [1] }]) {
      assert.ok(show(value).length <= 81)
    }
    assert.equal(show(Number.NaN), 'NaN')
    assert.equal(show('a'), '"a"')
  })
})
