import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { type Scope, tempFolder } from '../../test/fixtures.js'
import { idHash } from '../id-hash.js'
import { type IdIndex, openIdIndex } from '../id-index.js'
import { createRandom } from '../random.js'
import { writeIdIndex } from './id-list.js'

function indexOf(scope: Scope, text: string | Buffer, count: number, name = 'ids.txt'): IdIndex {
  const folder = tempFolder(scope)
  writeFileSync(`${folder}/${name}`, text)
  writeIdIndex(`${folder}/${name}`, `${folder}/index`, count)
  return openIdIndex(`${folder}/index`)
}

describe('an index of ids', () => {
  test('finds every id at its line and nothing else, as a map does', (t) => {
    const random = createRandom(5)
    const kinds: readonly ((i: number) => string)[] = [
      (i) => String(i),
      (i) => `item-${Math.floor(random() * 1e9)}-${i}`,
      (i) => `фильм ${i} 電影 🎬`,
      (i) => `${'x'.repeat(i % 700)}${i}`,
    ]
    for (const idOf of kinds) {
      for (const count of [1, 2, 3, 100, 5000]) {
        const ids = Array.from({ length: count }, (_, i) => idOf(i))
        const places = new Map(ids.map((id, i) => [id, i]))
        const index = indexOf(t, `${ids.join('\n')}\n`, count)
        assert.equal(index.count, count)
        ids.forEach((id, i) => {
          assert.equal(index.indexOf(id), i)
          assert.equal(index.idAt(i), id)
        })
        for (const id of ids) {
          for (const other of [
            `${id}0`,
            id.slice(1),
            id.slice(0, -1),
            ` ${id}`,
            id.toUpperCase(),
          ]) {
            assert.equal(index.indexOf(other), places.get(other) ?? -1, other)
          }
        }
        const mixed = ids.flatMap((id) => [id, `${id}?`, id.slice(1)])
        const expected = mixed.map((id) => places.get(id) ?? -1)
        assert.deepEqual([...index.indicesOf(mixed)], expected)
        assert.deepEqual([index.idAt(-1), index.idAt(count)], [undefined, undefined])
        assert.equal(index.indexOf(''), -1)
      }
    }
  })

  test('does not take one id for another whose UTF-8 bytes are its characters', (t) => {
    const index = indexOf(t, 'Ã\né\n', 2)
    assert.deepEqual(
      [...index.indicesOf(['Ã', 'é', 'Ã\u0083', 'Ã©', '\u00c3\u00a9'])],
      [0, 1, -1, -1, -1],
    )
  })

  test('is the same bytes for the same list, whatever its line ends are', (t) => {
    const folder = tempFolder(t)
    const texts = ['a\nbc\nd\n', 'a\nbc\nd', 'a\r\nbc\r\nd\r\n']
    const files = texts.map((text, i) => {
      writeFileSync(`${folder}/${i}.txt`, text)
      writeIdIndex(`${folder}/${i}.txt`, `${folder}/${i}`, 3)
      return readFileSync(`${folder}/${i}`)
    })
    assert.deepEqual(files[1], files[0])
    assert.deepEqual(files[2], files[0])
  })

  test('takes strings and whole numbers from NDJSON', (t) => {
    const index = indexOf(t, '"a\\u00e9"\n17\n"17 "\n9007199254740991\n', 4, 'ids.ndjson')
    assert.deepEqual(
      ['aé', '17', '17 ', '9007199254740991', '"17 "'].map((id) => index.indexOf(id)),
      [0, 1, 2, 3, -1],
    )
  })

  test('drops a byte order mark before the list, and keeps it where it is part of an id', (t) => {
    const text = '\ufeffa\n\ufeffb\n\ufeffa\n'
    const index = indexOf(t, text, 3)
    assert.deepEqual([...index.indicesOf(['a', '\ufeffa', 'b', '\ufeffb'])], [0, 2, -1, 1])
    assert.deepEqual([0, 1, 2].map(index.idAt), ['a', '\ufeffb', '\ufeffa'])
    assert.equal(indexOf(t, '\ufeff"a"\n', 1, 'ids.ndjson').indexOf('a'), 0)
  })

  test('does not take half of a surrogate pair for the character that replaces it', (t) => {
    const index = indexOf(t, '\ufffd\n🎬\n', 2)
    assert.deepEqual([...index.indicesOf(['\ufffd', '\ud800', '🎬', '\ud83c'])], [0, -1, 1, -1])
    assert.throws(() => indexOf(t, '"a"\n"\\ud800"\n', 2, 'ids.ndjson'), {
      code: 'CONFIG_INVALID',
      message: /line 2 must have no half of a surrogate pair/,
    })
  })

  test('refuses a list that is a folder or not there', (t) => {
    const folder = tempFolder(t)
    const refused = (list: string, message: RegExp) =>
      assert.throws(() => writeIdIndex(list, `${folder}/index`, 1), {
        code: 'CONFIG_INVALID',
        message,
      })
    refused(folder, /cannot read .*: it is not a file/)
    refused(`${folder}/none.txt`, /cannot read .*none\.txt: ENOENT/)
  })

  test('reads lines that end beyond a chunk', (t) => {
    const ids = Array.from({ length: 60_000 }, (_, i) => `${'long'.repeat(10)}${i}`)
    const index = indexOf(t, ids.join('\n'), ids.length)
    assert.ok(ids.every((id, i) => index.indexOf(id) === i))
  })

  test('refuses an id that is there twice, with both of its lines', (t) => {
    assert.throws(() => indexOf(t, 'a\nb\nc\nb\nd\n', 5), {
      code: 'CONFIG_INVALID',
      message: /has the id "b" twice: on lines 2 and 4/,
    })
    assert.throws(() => indexOf(t, '5\n"5"\n', 2, 'ids.ndjson'), /"5" twice: on lines 1 and 2/)
  })

  test('refuses lines that are no ids, and more or fewer than the table has rows', (t) => {
    const cases: readonly (readonly [string | Buffer, number, RegExp, string?])[] = [
      ['a\n\nb\n', 3, /line 2 must be an id, and is empty/],
      ['a\nb\n', 3, /must list 3 ids, got 2/],
      ['a\nb\n', 1, /must list 1 ids, got more/],
      ['', 1, /must list 1 ids, got 0/],
      [Buffer.of(97, 10, 0xff, 10), 2, /line 2 must be UTF-8/],
      ['1\n1e3\n', 2, /line 2 must be a JSON string or digits, got "1e3"/, 'ids.ndjson'],
      ['1\n{"id":1}\n', 2, /line 2 must be a JSON string or digits/, 'ids.ndjson'],
      ['1\nx\n', 2, /line 2 must be a JSON string or number/, 'ids.ndjson'],
    ]
    for (const [text, count, message, name] of cases) {
      assert.throws(() => indexOf(t, text, count, name), { code: 'CONFIG_INVALID', message })
    }
  })

  test('has these hashes: files that exist depend on them', () => {
    const hashes = ['', 'a', 'item-1', 'é'].map((id) => {
      const { place, tag, length } = idHash(id)
      return [length, place, tag]
    })
    assert.deepEqual(hashes, [
      [0, 2_872_998_923, 301_794_027],
      [1, 444_641_715, 2_731_803_806],
      [6, 3_023_994_994, 2_962_483_571],
      [2, 2_387_039_943, 1_622_919_845],
    ])
  })
})

describe('openIdIndex', () => {
  test('refuses a file that is no index, or not as long as it says', (t) => {
    const folder = tempFolder(t)
    writeFileSync(`${folder}/ids.txt`, 'a\nb\nc\n')
    writeIdIndex(`${folder}/ids.txt`, `${folder}/good`, 3)
    const good = readFileSync(`${folder}/good`)
    const words = (change: (words: Uint32Array) => void) => {
      const copy = new Uint8Array(good)
      change(new Uint32Array(copy.buffer, 0, 16))
      return copy
    }
    const cases: readonly (readonly [Uint8Array, RegExp])[] = [
      [new Uint8Array(0), /must be an index of ids, got 0 bytes/],
      [good.subarray(0, 63), /must be an index of ids, got 63 bytes/],
      [new Uint8Array(200), /must be an index of ids, and is not/],
      [words((header) => header.fill(2, 1, 2)), /must be an index of ids, and is not/],
      [good.subarray(0, good.length - 1), /must have \d+ bytes for 3 ids in 5 slots, got/],
      [words((header) => header.fill(2 ** 32 - 1, 2, 5)), /must have \d+ bytes for 4294967295 ids/],
      [words((header) => header.fill(3, 3, 4)), /for 3 ids in 3 slots/],
    ]
    for (const [bytes, message] of cases) {
      writeFileSync(`${folder}/bad`, bytes)
      assert.throws(() => openIdIndex(`${folder}/bad`), { code: 'CONFIG_INVALID', message })
    }
    assert.throws(() => openIdIndex(`${folder}/none`), { code: 'CONFIG_INVALID' })
  })

  test('ends a look-up in a file whose slots point anywhere', (t) => {
    const folder = tempFolder(t)
    writeFileSync(`${folder}/ids.txt`, 'a\nb\nc\n')
    writeIdIndex(`${folder}/ids.txt`, `${folder}/index`, 3)
    const bytes = readFileSync(`${folder}/index`)
    const random = createRandom(3)
    for (let round = 0; round < 200; round++) {
      const hostile = Buffer.from(bytes)
      for (let i = 64; i < hostile.length; i++) hostile[i] = Math.floor(random() * 256)
      writeFileSync(`${folder}/hostile`, hostile)
      const index = openIdIndex(`${folder}/hostile`)
      for (const id of ['a', 'b', 'zz']) assert.ok(index.indexOf(id) >= -1)
      assert.equal(index.indicesOf(['a', 'b', 'zz']).length, 3)
      for (let i = -1; i < 5; i++) index.idAt(i)
    }
  })
})
