import { createServer, type Server } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { FastifyServerOptions } from 'fastify'
import type { Registry } from 'prom-client'
import { addScraped } from './scraped.js'
import type { TlsMaterial } from './tls.js'

export type ListenerOptions = {
  /** TLS with this; absent = plain HTTP. */
  readonly tls?: TlsMaterial | undefined
  /** Connections beyond it are closed at once. */
  readonly maxConnections?: number
  readonly timeouts?: Partial<typeof TIMEOUTS>
}

export type Listener = {
  /** What Fastify makes its server with. */
  readonly serverFactory: NonNullable<FastifyServerOptions['serverFactory']>
  readonly scheme: 'http' | 'https'
  /** True where clients shall have a certificate, which `hasCertificate` tells. */
  readonly needsCertificate: boolean
  /** From now on new connections get this; the others go on. */
  setTls(tls: TlsMaterial): void
  /** Counts connections in `registry`. */
  addMetrics(registry: Registry): void
}

/** Nobody may hold a connection by sending or reading slowly, or by doing nothing. In milliseconds. */
const TIMEOUTS = {
  /** Until all headers are there, from the connection or from the first byte on a used one. */
  headersMs: 10_000,
  /** Until all of the body is there; 16 MiB in it need 2.2 Mbit/s. */
  requestMs: 60_000,
  /** Between requests: longer than the 60 s of common load balancers, which would else use a closed one. */
  keepAliveMs: 72_000,
  /** Until the TLS handshake is done. */
  handshakeMs: 10_000,
  /** While no byte moves: a client that does not read its answer. Longer than any ranking. */
  silenceMs: 600_000,
  /** How often the first two are looked at. */
  checkMs: 1_000,
}

/** The HTTP server under the app, with TLS where there is a certificate. */
export function createListener(options: ListenerOptions = {}): Listener {
  const { tls, maxConnections, timeouts } = options
  const { headersMs, requestMs, keepAliveMs, handshakeMs, silenceMs, checkMs } = {
    ...TIMEOUTS,
    ...timeouts,
  }
  const limits = {
    headersTimeout: headersMs,
    requestTimeout: requestMs,
    keepAliveTimeout: keepAliveMs,
    connectionsCheckingInterval: checkMs,
  }
  const connections = new Set<object>()
  let dropped = 0
  let server: (Server & { setSecureContext?(tls: TlsMaterial): void }) | undefined

  return {
    scheme: tls === undefined ? 'http' : 'https',
    needsCertificate: tls?.ca !== undefined,
    serverFactory(handler) {
      server =
        tls === undefined
          ? createServer(limits, handler)
          : createTlsServer(
              {
                ...limits,
                ...tls,
                handshakeTimeout: handshakeMs,
                // Asked of every client, demanded by auth.ts: a kubelet's probes have none.
                requestCert: tls.ca !== undefined,
                rejectUnauthorized: false,
              },
              handler,
            )
      if (maxConnections !== undefined) server.maxConnections = maxConnections
      server.setTimeout(silenceMs)
      server.on('connection', (socket) => {
        connections.add(socket)
        socket.once('close', () => connections.delete(socket))
      })
      server.on('drop', () => dropped++)
      return server
    },
    setTls: (next) => server?.setSecureContext?.(next),
    addMetrics(registry) {
      addScraped(registry, {
        kind: 'gauge',
        name: 'connections',
        help: 'Open connections',
        read: () => connections.size,
      })
      addScraped(registry, {
        kind: 'counter',
        name: 'connections_dropped_total',
        help: 'Connections closed at once: there were too many',
        read: () => dropped,
      })
    },
  }
}
