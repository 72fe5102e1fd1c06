import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { tempFolder } from '../../../test/fixtures.js'
import { collectGarbage } from '../../../test/gc.js'
import { findLibrary } from './library.js'
import { hostMemory } from './memory.js'
import { loadOrt } from './ort.js'
import { OrtError } from './ort-error.js'
import { ELEMENT } from './tensor.js'

const FAILURES = 100_000
/** A leaked status with its message would be 20 MB. */
const RSS_MARGIN_BYTES = 8 * 2 ** 20

describe('loadOrt', () => {
  const folder = tempFolder({ after })

  test('refuses what is not there, no library or another one, naming file and fault', () => {
    const text = `${folder}/text.so`
    writeFileSync(text, 'no library')
    const empty = `${folder}/empty.so`
    writeFileSync(empty, '')
    const cases: readonly (readonly [string, RegExp])[] = [
      [`${folder}/absent.so`, /absent\.so does not load: .+No such file/i],
      [text, /text\.so does not load: .+(invalid ELF header|too short)/],
      [empty, /empty\.so does not load: .+too short/],
      [folder, /does not load: .+director/],
      ['libc.so.6', /libc\.so\.6 does not load: .+OrtGetApiBase/],
    ]
    for (const [path, message] of cases) {
      assert.throws(() => loadOrt(path), { code: 'ENGINE_UNAVAILABLE', message })
    }
  })

  test('loads one library once, and says its version', () => {
    const ort = loadOrt(findLibrary())
    assert.equal(loadOrt(findLibrary()), ort)
    assert.match(ort.version, /^1\.\d+\.\d+$/)
  })

  test('throws ONNX Runtime’s own words and code when a call fails, and keeps nothing', () => {
    const ort = loadOrt(findLibrary())
    const host = hostMemory(ort)
    const before = ort.live()
    const fail = () => {
      const dims = BigInt64Array.of(3n)
      const data = new Float32Array(2)
      ort.CreateTensorWithDataAsOrtValue(host.info, data, 8, dims, 1, ELEMENT.float32)
    }
    assert.throws(fail, (error) => {
      assert.ok(error instanceof OrtError)
      assert.match(error.message, /not enough space: expected 12, got 8/)
      assert.equal(error.code, 2)
      return true
    })
    const failMany = (count: number) => {
      for (let i = 0; i < count; i++) {
        try {
          fail()
        } catch {
          // Counted on: the first one above was looked at.
        }
      }
    }
    failMany(FAILURES)
    collectGarbage()
    const rss = process.memoryUsage.rss()
    failMany(FAILURES)
    collectGarbage()
    const grown = process.memoryUsage.rss() - rss
    assert.ok(grown < RSS_MARGIN_BYTES, `grew by ${grown} bytes`)
    assert.equal(ort.live(), before)
    host.close()
  })

  test('rejects a session of a file that is not there, in ONNX Runtime’s words', async () => {
    const ort = loadOrt(findLibrary())
    const before = ort.live()
    const env = ort.CreateEnv(4, 'test')
    const options = ort.CreateSessionOptions()
    const container = ort.CreatePrepackedWeightsContainer()
    await assert.rejects(
      ort.createSession(env, `${folder}/absent.onnx`, options, container),
      (error) =>
        error instanceof OrtError && /absent\.onnx failed.+File doesn't exist/.test(error.message),
    )
    ort.ReleasePrepackedWeightsContainer(container)
    ort.ReleaseSessionOptions(options)
    ort.ReleaseEnv(env)
    assert.equal(ort.live(), before)
  })
})

describe('findLibrary', () => {
  test('names what it expected on a platform or processor that it does not know', () => {
    for (const platform of ['darwin', 'win32'] as const) {
      assert.throws(() => findLibrary(platform), {
        code: 'ENGINE_UNAVAILABLE',
        message: `engine capi runs on linux, got ${platform}`,
      })
    }
    assert.throws(() => findLibrary('linux', 's390x'), {
      code: 'ENGINE_UNAVAILABLE',
      message: /^engine capi expects .+linux\/s390x\/libonnxruntime\.so\.1, which is not there$/,
    })
  })
})
