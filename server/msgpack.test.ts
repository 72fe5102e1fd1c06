import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { decode, ExtData, encode } from '@msgpack/msgpack'
import type { RankInput } from '../model/request.js'
import { client, LIMITS, resultOf } from '../test/plain-ranker.js'
import { isRecord } from './fault.js'

const MSGPACK = { 'content-type': 'application/msgpack' }
const BODY = { user: { id: 'ü1' }, history: [{ item: 'h', time: 5 }], candidates: ['a', 'b'] }

/** Posts bytes; also the inputs that the ranker got. */
async function poster(t: TestContext) {
  const inputs: RankInput[] = []
  const post = await client(t, async (input) => {
    inputs.push(input)
    return resultOf(input)
  })
  const send = (body: unknown, headers: Record<string, string> = {}, url = '/v1/rank') =>
    post(body instanceof Uint8Array ? Buffer.from(body) : Buffer.from(encode(body)), url, {
      ...MSGPACK,
      ...headers,
    })
  return { inputs, send, post }
}

const packed = (...ids: bigint[]) => new Uint8Array(BigUint64Array.from(ids).buffer)

/** Without how long it waited, which two requests do not share. */
function untimed(answer: unknown) {
  assert.ok(isRecord(answer) && isRecord(answer.timings))
  const { queueMs, totalMs, ...timings } = answer.timings
  assert.ok(typeof queueMs === 'number' && typeof totalMs === 'number')
  return { ...answer, timings }
}

function columnOf(bytes: unknown): number[] {
  assert.ok(bytes instanceof Uint8Array)
  return [...new Float32Array(new Uint8Array(bytes).buffer)]
}

describe('MessagePack', () => {
  test('a body is read as JSON is, and answered in MessagePack', async (t) => {
    const { inputs, send, post } = await poster(t)
    const res = await send(BODY)
    assert.equal(res.statusCode, 200)
    assert.equal(res.headers['content-type'], 'application/msgpack')
    const inJson = await post(BODY)
    assert.deepEqual(untimed(decode(res.rawPayload)), untimed(inJson.json()))
    assert.deepEqual(inputs[0], inputs[1])
  })

  test('the answer follows accept: either format for either body', async (t) => {
    const { send, post } = await poster(t)
    const json = await send(BODY, { accept: 'application/json' })
    assert.match(String(json.headers['content-type']), /^application\/json/)
    assert.equal(json.json().items.length, 2)
    for (const accept of ['application/msgpack', 'application/x-msgpack, */*']) {
      const res = await post(BODY, '/v1/rank', { accept })
      assert.equal(res.headers['content-type'], 'application/msgpack')
      assert.deepEqual(untimed(decode(res.rawPayload)), untimed(json.json()))
    }
  })

  test('packed ids are decimal ids of 64 bits, and come back as columns, best first', async (t) => {
    const { inputs, send } = await poster(t)
    const ids = packed(7n, 2n ** 64n - 1n, 0n)
    const res = await send({ ...BODY, candidates: ids, explain: true })
    assert.equal(res.statusCode, 200)
    const wanted = ['7', '18446744073709551615', '0'].map((item) => ({ item }))
    assert.deepEqual(inputs[0]?.candidates, wanted)
    const answer = decode(res.rawPayload)
    assert.ok(isRecord(answer) && isRecord(answer.packed))
    assert.equal(answer.items, undefined)
    const { index, score, tasks, logits } = answer.packed
    assert.ok(index instanceof Uint8Array)
    assert.deepEqual([...new Uint32Array(new Uint8Array(index).buffer)], [0, 1, 2])
    assert.deepEqual(columnOf(score), [1, 0.5, Math.fround(1 / 3)])
    assert.ok(isRecord(tasks) && isRecord(logits))
    assert.deepEqual(columnOf(tasks.click), columnOf(score))
    assert.deepEqual(columnOf(logits.click), [0.5, 0.5, 0.5])
  })

  test('in a batch too', async (t) => {
    const { send } = await poster(t)
    const requests = [
      { ...BODY, candidates: packed(1n) },
      { user: { id: '' }, candidates: ['x'] },
    ]
    const res = await send({ requests }, {}, '/v1/rank/batch')
    const answer = decode(res.rawPayload)
    assert.ok(isRecord(answer) && Array.isArray(answer.results))
    const [first, second] = answer.results
    assert.ok(first.packed.score instanceof Uint8Array)
    assert.equal(second.error.code, 'INVALID_REQUEST')
  })

  test('what is no MessagePack, or bytes where there are none, is refused with the reason', async (t) => {
    const { send } = await poster(t)
    const tooMany = packed(...Array.from({ length: LIMITS.maxCandidates + 1 }, (_, i) => BigInt(i)))
    const cases: readonly (readonly [unknown, RegExp])[] = [
      [new Uint8Array(0), /must be a MessagePack map, got nothing/],
      [Uint8Array.of(0xc1), /must be MessagePack: /],
      [encode(BODY).subarray(0, 20), /must be MessagePack: /],
      [Uint8Array.of(...encode(BODY), 0), /must be MessagePack: Extra/],
      [{ ...BODY, candidates: new Uint8Array(9) }, /multiple of 8 bytes, got 9/],
      [{ ...BODY, candidates: tooMany }, /bin length \(88\) > maxBinLength \(80\)/],
      [{ ...BODY, candidates: new ExtData(2, new Uint8Array(8)) }, /ext length \(8\)/],
      [{ ...BODY, user: packed(1n) }, /^must not be binary/],
      [{ ...BODY, user: { id: 'u', features: packed(1n) } }, /^must not be binary/],
      [{ ...BODY, history: packed(1n) }, /^must not be binary/],
      [{ ...BODY, history: [packed(1n)] }, /^must not be binary/],
      [{ ...BODY, weights: packed(1n) }, /^must not be binary/],
      [encode(packed(1n)), /body must be a JSON object, got an object/],
      [[BODY], /body must be a JSON object, got an array/],
      [7, /body must be a JSON object, got 7/],
    ]
    for (const [body, expected] of cases) {
      const res = await send(body)
      assert.equal(res.statusCode, 400, String(expected))
      assert.match(String(res.headers['content-type']), /^application\/json/)
      assert.match(res.json().message, expected)
    }
  })

  test('a key __proto__ is refused', async (t) => {
    const { send } = await poster(t)
    const key = Uint8Array.from([0x81, 0xa9, ...Buffer.from('__proto__'), 0x80])
    const res = await send(key)
    assert.equal(res.statusCode, 400)
    assert.match(res.json().message, /__proto__/)
  })

  test('bodies at random are answered 400 or 422, never 500', async (t) => {
    const { send } = await poster(t)
    const good = encode({ ...BODY, candidates: packed(1n, 2n) })
    let state = 17
    const random = () => {
      state = (state * 1_103_515_245 + 12_345) % 2 ** 31
      return state / 2 ** 31
    }
    const seen = new Set<number>()
    for (let i = 0; i < 500; i++) {
      const bytes = Uint8Array.from(good)
      for (let k = 0; k <= i % 3; k++) {
        bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256)
      }
      const { statusCode } = await send(bytes)
      seen.add(statusCode)
      assert.ok([200, 400, 422].includes(statusCode), `${i}: ${statusCode}`)
    }
    assert.ok(seen.has(400) && seen.has(200))
  })
})
