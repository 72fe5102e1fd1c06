import { connect as connectTcp, type OnReadOpts, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { AbstractConnector, type RedisOptions, type StandaloneConnectionOptions } from 'ioredis'

/** Strings that a connection receives into memory of its own, over and over. */
export type LongStrings = {
  /** Of the longest; what is longer comes as it would without. */
  readonly bytes: number
  /** In one reply at most. */
  readonly perReply: number
}

/** Below it a string costs nothing that counts; also what is read at a time while none is under way. */
export const LONG_BYTES = 2 ** 14
/** At least of a string's first line, `$16384`; a multiple of a word. */
const MAX_LINE_BYTES = 32
const CRLF_BYTES = 2
const LF = 10
/** The words by which ioredis knows that it ended the connection itself, which is no fault to tell of. */
const CLOSED = 'Connection is closed.'
/** `$`, and of RESP3 `=` and `!`: the line says how many bytes follow it. */
const STRINGS = [36, 61, 33]

/**
 * Connects ioredis to one server or to a cluster's nodes as it does itself, but long strings of replies are
 * read where they can stay, by as few system calls as there can be. **They are views that hold until the
 * next turn of the event loop**: who needs the bytes for longer copies them. (Otherwise Node makes memory
 * for every 64 KiB and ioredis joins them: 25 MB for a user's 12, for which the garbage collector stops the
 * thread for longer than the bytes take to come.)
 */
export function receiveLong(strings: LongStrings): NonNullable<RedisOptions['Connector']> {
  return class extends AbstractConnector {
    readonly #options: StandaloneConnectionOptions

    constructor(options: unknown) {
      const given = options as StandaloneConnectionOptions & { readonly disconnectTimeout: number }
      super(given.disconnectTimeout)
      this.#options = given
    }

    async connect() {
      this.connecting = true
      await Promise.resolve()
      if (!this.connecting) throw new Error(CLOSED)
      const { host = 'localhost', port = 6379, tls } = this.#options
      const onread = receiver(strings, (bytes) => stream.emit('data', bytes))
      const options = { host, port, onread }
      const stream: Socket =
        tls === undefined ? connectTcp(options) : connectTls({ ...options, ...tls })
      stream.once('error', (error) => {
        this.firstError = error
      })
      this.stream = stream
      return stream
    }
  }
}

/**
 * What a socket is to read into, and do then. `pass` gets all bytes in their order: each long string whole
 * and for itself, at a multiple of a word, in memory that one had `perReply` long strings before; the rest
 * in memory of its own. The protocol is followed as far as lengths go.
 */
export function receiver(strings: LongStrings, pass: (bytes: Buffer) => void): OnReadOpts {
  const short = Buffer.allocUnsafeSlow(LONG_BYTES)
  /** Bytes at the start of `short`: of a line whose end has not come. */
  let held = 0
  /** Bytes to come of a string that is not long. */
  let rest = 0
  const slots: Buffer[] = []
  let turn = 0
  /** The long string under way, with its line, and the bytes of it that are there. */
  let long: Buffer | undefined
  let filled = 0

  const isLong = (bytes: number) => bytes >= LONG_BYTES && bytes <= strings.bytes

  /** Up to where there is neither a long string nor a line without its end. */
  const follow = (got: Buffer): number => {
    let at = 0
    for (;;) {
      const skipped = Math.min(rest, got.length - at)
      rest -= skipped
      at += skipped
      const end = got.indexOf(LF, at) + 1
      if (end === 0) return at
      const bytes = stringBytes(got, at, end)
      if (isLong(bytes)) return at
      if (bytes >= 0) rest = bytes + CRLF_BYTES
      at = end
    }
  }

  const begin = (first: Buffer, line: number) => {
    turn = (turn + 1) % strings.perReply
    const slot = slots[turn] ?? Buffer.allocUnsafeSlow(MAX_LINE_BYTES + strings.bytes + CRLF_BYTES)
    slots[turn] = slot
    const start = MAX_LINE_BYTES - line
    long = slot.subarray(start, MAX_LINE_BYTES + stringBytes(first, 0, line) + CRLF_BYTES)
    filled = first.copy(long)
  }

  return {
    buffer: () => long?.subarray(filled) ?? short.subarray(held),
    callback(count) {
      if (long === undefined) {
        const got = short.subarray(0, held + count)
        const end = follow(got)
        if (end > 0) pass(Buffer.from(got.subarray(0, end)))
        const left = got.subarray(end)
        const line = left.indexOf(LF) + 1
        held = 0
        if (line > 0) begin(left, line)
        else if (left.length < LONG_BYTES) held = left.copy(short)
        else {
          // No Redis has such lines: what it is ioredis shall see, now and from here on.
          pass(Buffer.from(left))
          rest = Number.POSITIVE_INFINITY
        }
        return true
      }
      filled += count
      if (filled === long.length) {
        const whole = long
        long = undefined
        pass(whole)
      }
      return true
    },
  }
}

/** Of the string that a line begins; not a number, or negative, where it begins none. */
function stringBytes(got: Buffer, from: number, to: number): number {
  if (!STRINGS.includes(got[from] ?? 0) || to - from > MAX_LINE_BYTES) return Number.NaN
  return Number(got.toString('latin1', from + 1, to - CRLF_BYTES))
}
