import { Cluster, Redis, type RedisOptions } from 'ioredis'
import { type LongStrings, receiveLong } from './redis-receiver.js'
import type { RedisTarget } from './redis-url.js'

/** One server, a Sentinel's master or a cluster: the commands are the same. */
export type RedisClient = Redis | Cluster

/** Only turns are told: one event when Redis is lost, however often the client tries again. */
export type RedisEvent =
  | { readonly kind: 'redisReady'; readonly role: string }
  | { readonly kind: 'redisLost'; readonly role: string; readonly message: string }

export type ConnectOptions = {
  /** What the connection is for; CLIENT LIST shows it as `peregrine:<role>`. */
  readonly role: string
  /** A command without an answer so long after it was called rejects. */
  readonly commandTimeoutMs: number
  readonly onEvent?: (event: RedisEvent) => void
  /**
   * Strings of replies that hold only until the next turn of the event loop, and come faster for it; behind
   * a Sentinel they come as all others do.
   */
  readonly longStrings?: LongStrings
  /** Jitter of the reconnects, in [0, 1). */
  readonly random?: () => number
}

/** For TCP and TLS, and again for the greeting behind them. */
const CONNECT_TIMEOUT_MS = 1000
/** Silence beyond a command's timeout after which the connection counts as dead. */
const STUCK_MS = 1000
const KEEP_ALIVE_MS = 10_000
const MAX_BACKOFF_MS = 5000
const SLOTS_REFRESH_INTERVAL_MS = 5000
const SLOTS_REFRESH_TIMEOUT_MS = 500
/** MOVED once is common, twice is a cluster that changes right now: better a miss. */
const MAX_REDIRECTIONS = 3

/**
 * A client fit for a cache. It returns at once and connects in the background, for ever; while there
 * is no connection every command rejects immediately: nothing queues, nothing is sent twice. A
 * server that is connected but silent costs the first commands their timeout, then the connection.
 * Errors never reach the process: they are commands' rejections and `onEvent`. Ends by `disconnect()`.
 */
export function connectRedis(target: RedisTarget, options: ConnectOptions): RedisClient {
  const { role, commandTimeoutMs, onEvent = () => {}, random = Math.random } = options
  const retry = (times: number) => backoffMs(times, random())
  const { longStrings } = options
  const common = {
    ...(target.username !== undefined && { username: target.username }),
    ...(target.password !== undefined && { password: target.password }),
    ...(target.tls !== undefined && { tls: target.tls }),
    connectionName: `peregrine:${role}`,
    connectTimeout: CONNECT_TIMEOUT_MS,
    disconnectTimeout: STUCK_MS,
    socketTimeout: commandTimeoutMs + STUCK_MS,
    keepAlive: KEEP_ALIVE_MS,
    noDelay: true,
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    // No autopipelining: a lookup that is alone waits a turn of the event loop for company (a third
    // to half fewer heads a second), and the chunks of a large user would become one command again.
    // INFO waits for as long as Redis loads its data; a LOADING error per command does not.
    enableReadyCheck: false,
    // A master that was demoted: the address, or a Sentinel, has another by now.
    reconnectOnError: (error: Error) => error.message.startsWith('READONLY'),
    ...(longStrings !== undefined &&
      target.kind !== 'sentinel' && { Connector: receiveLong(longStrings) }),
  } satisfies RedisOptions

  if (target.kind === 'cluster') {
    const cluster = new Cluster([...target.addresses], {
      redisOptions: common,
      enableOfflineQueue: false,
      enableReadyCheck: false,
      clusterRetryStrategy: retry,
      // No retry per node: one that is away is dropped until another names it, and when all are, the
      // names are resolved anew. (With retries ioredis never notices that the last one has gone.)
      clusterNodeRetryStrategy: null,
      slotsRefreshInterval: SLOTS_REFRESH_INTERVAL_MS,
      slotsRefreshTimeout: SLOTS_REFRESH_TIMEOUT_MS,
      maxRedirections: MAX_REDIRECTIONS,
      // 0 is "do not retry": the caller has better to do than to wait for a failover.
      retryDelayOnFailover: 0,
      retryDelayOnClusterDown: 0,
      retryDelayOnTryAgain: 0,
      // Names go to the socket as they are: TLS compares them with the certificate.
      dnsLookup: (host, done) => done(null, host),
    })
    cluster.on('+node', (node: Redis) => {
      limitCommands(node, commandTimeoutMs)
      // A node that waits for its first command would queue it for as long as it takes to connect.
      node.connect().catch(() => {})
    })
    tellTurns(cluster, role, onEvent)
    return cluster
  }

  const [address] = target.addresses
  const where =
    target.kind === 'single'
      ? { ...address }
      : {
          sentinels: [...target.addresses],
          name: target.master,
          // Its answer has the role: a Sentinel may still name a master that is none any more.
          enableReadyCheck: true,
          maxLoadingRetryTime: CONNECT_TIMEOUT_MS,
          sentinelCommandTimeout: CONNECT_TIMEOUT_MS,
          // Undefined would end the client for good.
          sentinelRetryStrategy: retry,
          ...(target.sentinelUsername !== undefined && {
            sentinelUsername: target.sentinelUsername,
          }),
          ...(target.sentinelPassword !== undefined && {
            sentinelPassword: target.sentinelPassword,
          }),
          ...(target.tls !== undefined && {
            sentinelTLS: target.tls,
            enableTLSForSentinelMode: true,
          }),
        }
  const redis = new Redis({
    ...common,
    ...where,
    db: target.db,
    enableOfflineQueue: false,
    retryStrategy: retry,
  })
  limitCommands(redis, commandTimeoutMs)
  tellTurns(redis, role, onEvent)
  return redis
}

/** Delay before the `times`-th attempt (from 1): 50 ms doubled up to 5 s, of which half is jitter. */
export function backoffMs(times: number, jitter: number): number {
  return Math.min(MAX_BACKOFF_MS, 50 * 2 ** (times - 1)) * (0.5 + jitter / 2)
}

/**
 * ioredis's own `commandTimeout` holds for the greeting too: with a few milliseconds, which are right
 * for a cache, a busy moment would keep it from ever connecting. Not enumerable, so that the
 * connections a cluster makes by copying the options, to read its slots, have none.
 */
function limitCommands(redis: Redis, commandTimeoutMs: number): void {
  Object.defineProperty(redis.options, 'commandTimeout', {
    enumerable: false,
    get: () => (redis.status === 'ready' ? commandTimeoutMs : CONNECT_TIMEOUT_MS),
  })
}

function tellTurns(client: RedisClient, role: string, onEvent: (event: RedisEvent) => void): void {
  let isReady: boolean | undefined
  let nodeReason: string | undefined
  const lost = (message: string) => {
    if (isReady === false) return
    isReady = false
    onEvent({ kind: 'redisLost', role, message })
  }
  client.on('ready', () => {
    isReady = true
    nodeReason = undefined
    onEvent({ kind: 'redisReady', role })
  })
  // Of a cluster's nodes: the cluster itself may only say that it has none left.
  client.on('node error', (error: unknown) => {
    const reason = reasonOf(error)
    if (reason !== 'Connection is closed.') nodeReason = reason
  })
  // Without a listener an 'error' would be printed, or end the process.
  client.on('error', (error: unknown) => lost(nodeReason ?? reasonOf(error)))
  // Not 'close': that also comes when we end the client ourselves.
  client.on('reconnecting', () => lost(nodeReason ?? 'the connection closed'))
}

/** Never the error itself: it carries the command, and that of a login has the password. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  // Of a host with several addresses, whose own message is empty.
  if (error instanceof AggregateError) return error.errors.map(reasonOf).join('; ')
  return error.message
}
