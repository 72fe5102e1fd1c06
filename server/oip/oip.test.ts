import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import type { RankInput } from '../../model/request.js'
import { appOf, resultOf } from '../../test/plain-ranker.js'

const HEADER = 'inference-header-content-length'
const INFER = '/v2/models/toy/infer'

async function oip(t: TestContext) {
  const inputs: RankInput[] = []
  const app = await appOf(async (input) => {
    inputs.push(input)
    // Best first is not the order of the candidates.
    const result = resultOf(input)
    return { ...result, items: result.items.toReversed() }
  })
  t.after(() => app.close())
  const post = (body: unknown, headers: Record<string, string> = {}, url = INFER) =>
    app.inject({
      ...{ method: 'POST', url, headers },
      payload: Buffer.isBuffer(body) ? body : JSON.stringify(body),
    })
  return { inputs, post, get: (url: string) => app.inject({ url }) }
}

const bytesTensor = (name: string, ...data: string[]) => ({
  ...{ name, datatype: 'BYTES', shape: [data.length], data },
})
const REQUEST = { inputs: [bytesTensor('user_id', 'u1'), bytesTensor('candidates', 'a', 'b', 'c')] }

/** As clients lay BYTES behind the JSON: each element's length, then the element. */
function bytesOf(...texts: string[]): Buffer {
  return Buffer.concat(
    texts.flatMap((text) => {
      const length = Buffer.alloc(4)
      length.writeUInt32LE(Buffer.byteLength(text))
      return [length, Buffer.from(text)]
    }),
  )
}

/** A request with tensors behind its JSON, as Triton's Python client makes it: without a content type. */
function binaryRequest(
  tensors: readonly { name: string; datatype: string; bytes: Buffer; count: number }[],
  rest: object = {},
): [Buffer, Record<string, string>] {
  const inputs = tensors.map(({ name, datatype, bytes, count }) => ({
    ...{ name, datatype, shape: [count] },
    parameters: { binary_data_size: bytes.byteLength },
  }))
  const json = Buffer.from(JSON.stringify({ inputs, ...rest }))
  return [
    Buffer.concat([json, ...tensors.map(({ bytes }) => bytes)]),
    { [HEADER]: String(json.byteLength) },
  ]
}

describe('the Open Inference Protocol', () => {
  test('health and metadata', async (t) => {
    const { get } = await oip(t)
    assert.deepEqual((await get('/v2')).json(), {
      ...{ name: 'peregrine', version: 'v2', extensions: ['binary_tensor_data'] },
    })
    assert.deepEqual((await get('/v2/health/live')).json(), { live: true })
    assert.deepEqual((await get('/v2/health/ready')).json(), { ready: true })
    for (const url of ['/v2/models/toy', '/v2/models/toy/versions/abc123']) {
      const { name, versions, platform, inputs, outputs } = (await get(url)).json()
      assert.deepEqual(
        { name, versions, platform },
        {
          ...{ name: 'toy', versions: ['abc123'], platform: 'peregrine_hstu' },
        },
      )
      assert.deepEqual(inputs[0], { name: 'user_id', datatype: 'BYTES', shape: [1] })
      assert.deepEqual(outputs, [
        { name: 'score', datatype: 'FP32', shape: [-1] },
        { name: 'click', datatype: 'FP32', shape: [-1] },
      ])
      assert.deepEqual((await get(`${url}/ready`)).json(), { name: 'toy', ready: true })
    }
    const missing = await get('/v2/models/toy/versions/7')
    assert.equal(missing.statusCode, 404)
    assert.match(
      missing.json().error,
      /MODEL_NOT_FOUND: .*no model "toy@7": expected "toy" or "toy@abc123"/,
    )
  })

  test('infer answers score and tasks in the order of the candidates', async (t) => {
    const { post, inputs } = await oip(t)
    const res = await post({ ...REQUEST, id: '7' }, { 'content-type': 'application/json' })
    assert.equal(res.statusCode, 200)
    const scores = [1, 1 / 2, 1 / 3]
    assert.deepEqual(res.json(), {
      ...{ model_name: 'toy', model_version: 'abc123', id: '7' },
      outputs: [
        { name: 'score', datatype: 'FP32', shape: [3], data: scores },
        { name: 'click', datatype: 'FP32', shape: [3], data: scores },
      ],
    })
    assert.deepEqual(inputs[0], {
      ...{ user: { id: 'u1' }, histories: [], series: {}, time: 1000 },
      candidates: [{ item: 'a' }, { item: 'b' }, { item: 'c' }],
    })
  })

  test('history, time and the rest of a request come as tensors', async (t) => {
    const { post, inputs } = await oip(t)
    const rest = JSON.stringify({ user: { id: 'no', features: { f: 1 } }, deadlineMs: 500 })
    const res = await post({
      inputs: [
        ...REQUEST.inputs,
        bytesTensor('history_items', 'x', 'y', 'z'),
        { name: 'history_times', datatype: 'INT64', shape: [3], data: [5, 6, 7] },
        bytesTensor('history_actions', '["click"]', '[]', ''),
        { name: 'time', datatype: 'INT64', shape: [1], data: [99] },
        bytesTensor('request', rest),
      ],
    })
    assert.equal(res.statusCode, 200, res.body)
    assert.deepEqual(inputs[0]?.user, { id: 'u1', features: { f: 1 } })
    assert.equal(inputs[0]?.time, 99)
    assert.deepEqual(inputs[0]?.histories, [
      [
        { item: 'x', time: 5, actions: ['click'] },
        { item: 'y', time: 6, actions: [] },
        { item: 'z', time: 7 },
      ],
    ])
  })

  test('tensors behind the JSON, in and out, mean the same', async (t) => {
    const { post, inputs } = await oip(t)
    const ids = Buffer.alloc(24)
    for (const [i, id] of [7n, 2n ** 62n, 9n].entries()) ids.writeBigInt64LE(id, 8 * i)
    const times = Buffer.alloc(8)
    times.writeInt32LE(5, 0)
    times.writeInt32LE(6, 4)
    const wantedOutputs = [{ name: 'click' }, { name: 'score', parameters: { binary_data: false } }]
    const request = (...items: string[]) =>
      binaryRequest(
        [
          { name: 'user_id', datatype: 'BYTES', bytes: bytesOf('ü'), count: 1 },
          { name: 'candidates', datatype: 'INT64', bytes: ids, count: 3 },
          { name: 'history_items', datatype: 'BYTES', bytes: bytesOf(...items), count: 2 },
          { name: 'history_times', datatype: 'INT32', bytes: times, count: 2 },
        ],
        { parameters: { binary_data_output: true }, outputs: wantedOutputs },
      )
    assert.match((await post(...request('', 'ß'))).json().error, /\/history\/0\/item must not have/)
    const res = await post(...request('s', 'ß'))
    assert.equal(res.statusCode, 200, res.body)
    assert.equal(inputs[0]?.user.id, 'ü')
    assert.deepEqual(inputs[0]?.histories[0], [
      { item: 's', time: 5 },
      { item: 'ß', time: 6 },
    ])
    const wanted = ['7', String(2n ** 62n), '9'].map((item) => ({ item }))
    assert.deepEqual(inputs[0]?.candidates, wanted)
    assert.equal(res.headers['content-type'], 'application/octet-stream')
    const jsonBytes = Number(res.headers[HEADER])
    const { outputs } = JSON.parse(res.rawPayload.subarray(0, jsonBytes).toString())
    assert.deepEqual(outputs, [
      { name: 'click', datatype: 'FP32', shape: [3], parameters: { binary_data_size: 12 } },
      { name: 'score', datatype: 'FP32', shape: [3], data: [1, 1 / 2, 1 / 3] },
    ])
    const tail = new Uint8Array(res.rawPayload.subarray(jsonBytes))
    assert.deepEqual([...new Float32Array(tail.buffer)], [1, 1 / 2, 1 / 3].map(Math.fround))
  })

  test('what is wrong with a request is said as { error }, with the tensor’s name', async (t) => {
    const { inputs, post } = await oip(t)
    const [user, candidates] = REQUEST.inputs
    const withTensor = (tensor: object) => ({ inputs: [user, candidates, tensor] })
    const cases: readonly (readonly [unknown, RegExp, Record<string, string>?])[] = [
      ['{', /must be JSON: /],
      [{}, /lacks the fields: inputs/],
      [{ inputs: [] }, /\/inputs/],
      [{ inputs: [user] }, /lacks the fields: "candidates"/],
      [{ inputs: [candidates] }, /lacks the fields: "user"/],
      [{ inputs: [user, user, candidates] }, /input "user_id": comes twice/],
      [withTensor(bytesTensor('colour', 'red')), /input "colour": is not one of user_id, /],
      [{ inputs: [user, { ...candidates, shape: [4] }] }, /shape \[4\] has 4 elements, got 3/],
      [{ inputs: [user, { ...candidates, datatype: 'FP32' }] }, /must be one of INT32, .*"FP32"/],
      [{ inputs: [user, { ...candidates, data: ['a', 1, 'c'] }] }, /element 1 must be a string/],
      [
        { inputs: [user, { ...candidates, data: undefined }] },
        /data must be an array, got nothing/,
      ],
      [withTensor(bytesTensor('history_items', 'x')), /needs history_times/],
      [withTensor({ ...bytesTensor('history_times'), datatype: 'INT64' }), /needs history_items/],
      [withTensor(bytesTensor('request', '[]')), /must be a JSON object, got \[\]/],
      [withTensor(bytesTensor('request', '{"topK":1}')), /must not have topK/],
      [withTensor(bytesTensor('request', '{"colour":1}')), /unknown fields: "colour"/],
      [{ ...REQUEST, outputs: [{ name: 'x' }] }, /output "x" is not one of score, click/],
      [REQUEST, /Inference-Header-Content-Length must be at most/, { [HEADER]: '9999' }],
      [REQUEST, /must be a number of bytes, got "x"/, { [HEADER]: 'x' }],
      [
        { ...REQUEST, inputs: [{ ...user, parameters: { shared_memory_region: 'r' } }] },
        /shared_memory_region/,
      ],
    ]
    for (const [body, expected, headers] of cases) {
      const payload = typeof body === 'string' ? Buffer.from(body) : body
      const res = await post(payload, headers)
      assert.equal(res.statusCode, 400, `${expected}: ${res.body}`)
      assert.match(res.json().error, expected)
    }
    assert.deepEqual(inputs, [], 'refused before anything is ranked')
    const [short, headers] = binaryRequest([
      { name: 'user_id', datatype: 'BYTES', bytes: bytesOf('u').subarray(0, 4), count: 1 },
      { name: 'candidates', datatype: 'BYTES', bytes: bytesOf('a'), count: 1 },
    ])
    assert.match((await post(short, headers)).json().error, /element 0 goes beyond its 4 bytes/)
    assert.match((await post(short.subarray(0, -1), headers)).json().error, /goes beyond the body/)
    const more = Buffer.concat([short, Buffer.alloc(1)])
    assert.match((await post(more, headers)).json().error, /behind the JSON/)
  })
})
