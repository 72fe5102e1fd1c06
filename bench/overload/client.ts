import { connect, type Socket } from 'node:net'

/** Status and time of one answer. */
export type Reply = {
  readonly status: number
  /** From the last byte handed to the socket to the last of the answer. */
  readonly ms: number
}

/**
 * HTTP over kept-alive sockets, one request at a time on each, as many sockets as it takes. node:http costs the
 * load generator five times as much, on cores that it shares with the server.
 */
export function createRawClient(port: number) {
  const idle: Connection[] = []
  const all = new Set<Connection>()
  return {
    async send(request: Buffer): Promise<Reply> {
      let connection = idle.pop()
      if (connection === undefined) {
        const opened = await open(port)
        connection = opened
        all.add(opened)
        // The server closes what idles: it would take a request and never answer.
        void opened.closed.then(() => {
          all.delete(opened)
          if (idle.includes(opened)) idle.splice(idle.indexOf(opened), 1)
        })
      }
      const reply = await connection.send(request)
      if (connection.isOpen()) idle.push(connection)
      return reply
    },
    sockets: () => all.size,
    close(): void {
      for (const connection of all) connection.end()
    },
  }
}

/** The bytes of a request, a ranking's where nothing else is said. */
export function requestBytes(
  body: string,
  headers: { readonly [name: string]: string },
  target = 'POST /v1/rank',
): Buffer {
  const lines = Object.entries({
    host: '127.0.0.1',
    ...(body !== '' && {
      'content-type': 'application/json',
      'content-length': String(Buffer.byteLength(body)),
    }),
    ...headers,
  }).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.from(`${target} HTTP/1.1\r\n${lines.join('')}\r\n${body}`)
}

type Connection = {
  send(request: Buffer): Promise<Reply>
  isOpen(): boolean
  /** Resolves when the socket is gone, whoever ended it. */
  readonly closed: Promise<void>
  end(): void
}

const HEADERS_END = '\r\n\r\n'

function open(port: number): Promise<Connection> {
  return new Promise((resolve, reject) => {
    const socket: Socket = connect({ port, host: '127.0.0.1', noDelay: true })
    let done: ((reply: Reply) => void) | undefined
    let fail: (error: Error) => void = reject
    let sent = 0
    let status = 0
    /** Bytes of the answer still to come; undefined before its headers are there. */
    let left: number | undefined
    let head = ''
    let isClosing = false
    socket.once('connect', () =>
      resolve({
        send(request) {
          return new Promise((onReply, onError) => {
            done = onReply
            fail = onError
            left = undefined
            head = ''
            sent = performance.now()
            socket.write(request)
          })
        },
        isOpen: () => !socket.destroyed && !isClosing,
        closed: new Promise((onClosed) => socket.once('close', () => onClosed())),
        end: () => socket.destroy(),
      }),
    )
    socket.on('data', (bytes) => {
      let rest = bytes.length
      if (left === undefined) {
        head += bytes.toString('latin1')
        const end = head.indexOf(HEADERS_END)
        if (end === -1) return
        status = Number(head.slice(9, 12))
        const length = Number(/\r\ncontent-length: (\d+)/i.exec(head)?.[1] ?? 0)
        isClosing = /\r\nconnection: close/i.test(head.slice(0, end))
        left = length
        rest = head.length - end - HEADERS_END.length
      }
      left -= rest
      if (left > 0) return
      done?.({ status, ms: performance.now() - sent })
    })
    socket.on('error', (error) => fail(error))
    socket.on('close', () => fail(new Error('the server closed the connection')))
  })
}
