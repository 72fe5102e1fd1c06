import assert from 'node:assert/strict'
import { once } from 'node:events'
import { describe, type TestContext, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { makeCertificates, NO_REDIS, startCluster, startRedis, until } from '../test/redis.js'
import { connectRedis, type RedisEvent } from './redis.js'
import { LONG_BYTES, type LongStrings, receiver } from './redis-receiver.js'
import { parseRedisUrl } from './redis-url.js'

const STRINGS: LongStrings = { bytes: 4 * LONG_BYTES, perReply: 2 }

/** Passes `stream` in reads of up to `most` bytes; gives what comes of it, copied when it comes. */
function receive(stream: Buffer, most: () => number, strings = STRINGS) {
  const passed: { readonly view: Buffer; readonly copy: Buffer }[] = []
  const { buffer, callback } = receiver(strings, (view) =>
    passed.push({ view, copy: Buffer.from(view) }),
  )
  assert.ok(typeof buffer === 'function')
  for (let at = 0; at < stream.length; ) {
    const target: Uint8Array = buffer()
    assert.ok(target.length > 0, 'nothing to read into')
    const count = stream.copy(target, 0, at, Math.min(stream.length, at + most()))
    at += count
    assert.equal(callback(count, target), true)
  }
  return passed
}

const joined = (passed: ReturnType<typeof receive>) => Buffer.concat(passed.map(({ copy }) => copy))

function bytesOf(random: () => number, length: number): Buffer {
  // Full of what the protocol is made of.
  return Buffer.from(
    Array.from({ length }, () => [13, 10, 36, 42, 49, 7][Math.floor(random() * 6)] ?? 0),
  )
}

const bulk = (payload: Buffer, type = '$') =>
  Buffer.concat([Buffer.from(`${type}${payload.length}\r\n`), payload, Buffer.from('\r\n')])

/** A reply as RESP2 and RESP3 have them. */
function reply(random: () => number): Buffer {
  const pick = <T>(items: readonly T[]) => items[Math.floor(random() * items.length)] as T
  const lengths = [0, 1, 9, 500, LONG_BYTES - 1, LONG_BYTES, 3 * LONG_BYTES, STRINGS.bytes]
  const some = () =>
    bulk(bytesOf(random, pick([...lengths, STRINGS.bytes + 1])), pick(['$', '$', '=']))
  const line = pick([':1', '+OK', '-ERR no', '_', '$-1', '*-1', '*0', ',1.5', '%1', '$nonsense'])
  return random() < 0.5
    ? Buffer.from(`${line}\r\n`)
    : Buffer.concat([Buffer.from('*2\r\n'), some(), some()])
}

describe('receiver', () => {
  test('passes every byte on in order, however they come, and each long string whole', () => {
    const random = createRandom(5)
    for (const most of [1, 7, 1000, LONG_BYTES, 10 * LONG_BYTES]) {
      const replies = Array.from({ length: most === 1 ? 40 : 150 }, () => reply(random))
      const stream = Buffer.concat(replies)
      const passed = receive(stream, () => 1 + Math.floor(random() * most))
      assert.ok(joined(passed).equals(stream), `reads of ${most} bytes`)
      const long = passed.filter(({ copy }) => copy.length > LONG_BYTES)
      assert.ok(long.length > 2, `${long.length} long strings`)
      for (const { view, copy } of long) {
        const line = copy.indexOf('\n') + 1
        assert.equal(copy.length, line + Number(copy.toString('latin1', 1, line - 2)) + 2)
        assert.equal((view.byteOffset + line) % 8, 0, 'rows begin where a word does')
      }
    }
  })

  test('long strings come in the memory of earlier ones, as many as a reply has at most', () => {
    const stream = Buffer.concat(
      [1, 2, 3, 4].map((value) => bulk(Buffer.alloc(2 * LONG_BYTES + value, value))),
    )
    const passed = receive(stream, () => 1e6)
    const [one, two, three, four] = passed.map(({ view }) => view.buffer)
    assert.equal(passed.length, 4)
    assert.notEqual(one, two)
    assert.deepEqual([three === one, four === two], [true, true])
  })

  test('what is no Redis is passed on as it comes', () => {
    const random = createRandom(6)
    const stream = Buffer.concat([
      Buffer.alloc(LONG_BYTES, 'x'),
      bulk(Buffer.alloc(2 * LONG_BYTES, 'y')),
    ])
    const passed = receive(stream, () => 1 + Math.floor(random() * 1e4))
    assert.ok(joined(passed).equals(stream))
    for (const { copy } of passed) assert.ok(copy.length <= LONG_BYTES)
  })
})

describe('long strings of Redis', { skip: NO_REDIS }, () => {
  const payloads = [0, 5, LONG_BYTES, STRINGS.bytes, STRINGS.bytes + 1, 1e6].map((length) =>
    bytesOf(createRandom(length), length),
  )

  async function open(t: TestContext, url: string) {
    const client = connectRedis(parseRedisUrl(url), {
      ...{ role: 'test', commandTimeoutMs: 5_000, longStrings: STRINGS },
    })
    t.after(() => client.disconnect())
    await until(`${url} to answer`, async () => (await client.get('none')) === null)
    return client
  }

  /** Many replies at once, each looked at when it comes. */
  async function check(client: Awaited<ReturnType<typeof open>>) {
    const keys = Array.from({ length: 8 }, (_, i) => `key ${i}`)
    for (const key of keys) {
      for (const [field, value] of payloads.entries()) await client.hset(key, String(field), value)
      await client.set(`${key}, not a hash`, 'x')
    }
    const fields = [...payloads.keys(), 'none'].map(String)
    const wrong = await Promise.all(
      [...keys, ...keys].map(async (key) => {
        const failed = client.hmgetBuffer(`${key}, not a hash`, '0').then(
          () => false,
          (error) => /WRONGTYPE/.test(String(error)),
        )
        const found = await client.hmgetBuffer(key, ...fields)
        const isSo = fields.every(
          (_, i) => payloads[i]?.equals(found[i] ?? Buffer.from('?')) ?? found[i] === null,
        )
        return isSo && (await failed) ? [] : [key]
      }),
    )
    assert.deepEqual(wrong.flat(), [])
  }

  test('are of no concern to whom ends the client before it connects', async () => {
    const events: RedisEvent[] = []
    const client = connectRedis(parseRedisUrl('redis://127.0.0.1:1'), {
      ...{ role: 'test', commandTimeoutMs: 5000, longStrings: STRINGS },
      onEvent: (event) => void events.push(event),
    })
    const ended = once(client, 'end')
    client.disconnect()
    await ended
    assert.deepEqual(events, [])
  })

  test('are what was written, of one server', async (t) => {
    const { url } = await startRedis(t)
    await check(await open(t, url))
  })

  test('are what was written, over TLS', async (t) => {
    const tls = makeCertificates(t)
    const { url } = await startRedis(t, { tls })
    await check(await open(t, `${url}?ca=${tls.ca}&cert=${tls.cert}&key=${tls.key}`))
  })

  test('are what was written, of a cluster', async (t) => {
    await check(await open(t, (await startCluster(t)).url))
  })
})
