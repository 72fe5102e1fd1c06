// A network that can be slowed down, cut and shut.
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import type { Scope } from './fixtures.js'

export type Network = {
  readonly port: number
  /** From now on all that passes, either way, comes so much later; 0 = at once. */
  setDelay(ms: number): void
  /** Closes every connection as soon as the server answers anything more, before the client sees it. */
  cutAtNextAnswer(): void
  /** Closes every connection once the server has answered so many bytes more, of which the client sees all. */
  cutAfter(bytes: number): void
  /** Closes every connection, and each new one at once, until it is opened again. */
  shut(): void
  open(): void
}

/** A network between a client and a server on 127.0.0.1. */
export async function startProxy(scope: Scope, serverPort: number): Promise<Network> {
  let delayMs = 0
  let isCutting = false
  let leftBytes = Number.POSITIVE_INFINITY
  let isShut = false
  const sockets = new Set<Socket>()
  const cut = () => {
    isCutting = false
    leftBytes = Number.POSITIVE_INFINITY
    for (const socket of sockets) socket.destroy()
  }
  const pass = (from: Socket, to: Socket, isAnswer: boolean) => {
    sockets.add(from)
    from.on('data', (bytes) => {
      if (isAnswer) leftBytes -= bytes.length
      if (isAnswer && isCutting) cut()
      else if (leftBytes < 0) to.write(bytes.subarray(0, leftBytes), cut)
      else if (delayMs === 0) to.write(bytes)
      else setTimeout(() => to.write(bytes), delayMs)
    })
    from.on('error', () => {})
    from.on('close', () => {
      sockets.delete(from)
      to.destroy()
    })
  }
  const server = createServer((client) => {
    if (isShut) {
      client.destroy()
      return
    }
    const upstream = connect(serverPort, '127.0.0.1')
    pass(client, upstream, false)
    pass(upstream, client, true)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  scope.after(() => {
    cut()
    server.close()
  })
  const address = server.address()
  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    setDelay: (ms) => {
      delayMs = ms
    },
    cutAtNextAnswer: () => {
      isCutting = true
    },
    cutAfter: (bytes) => {
      leftBytes = bytes
    },
    shut() {
      isShut = true
      cut()
    },
    open() {
      isShut = false
    },
  }
}
