import { readFileSync } from 'node:fs'
import { show } from '../model/check.js'
import { RankError } from '../model/errors.js'

export type RedisAddress = { readonly host: string; readonly port: number }

/** PEM texts; an empty object is TLS with the system's authorities and no client certificate. */
export type RedisTls = { readonly ca?: string; readonly cert?: string; readonly key?: string }

type Common = {
  readonly addresses: readonly RedisAddress[]
  readonly username?: string
  readonly password?: string
  readonly tls?: RedisTls
}

/** Where Redis is and how to log in. Holds the password: never log it, log `redactRedisUrl`. */
export type RedisTarget =
  | (Common & { readonly kind: 'single'; readonly db: number })
  | (Common & { readonly kind: 'cluster' })
  | (Common & {
      readonly kind: 'sentinel'
      readonly db: number
      /** Name of the group of master and replicas. */
      readonly master: string
      readonly sentinelUsername?: string
      readonly sentinelPassword?: string
    })

const KINDS = {
  redis: 'single',
  rediss: 'single',
  'redis-cluster': 'cluster',
  'rediss-cluster': 'cluster',
  'redis-sentinel': 'sentinel',
  'rediss-sentinel': 'sentinel',
} as const

type Scheme = keyof typeof KINDS

const FORMS = {
  single: '[[user]:password@]host[:port][/db]',
  cluster: '[[user]:password@]host[:port][,host[:port] …]',
  sentinel: '[[user]:password@]host[:port][,host[:port] …]/master',
} as const

const PARAMETERS = {
  single: [],
  cluster: [],
  sentinel: ['db', 'sentinelUsername', 'sentinelPassword'],
} as const
const TLS_PARAMETERS = ['ca', 'cert', 'key'] as const
const SECRET = 'sentinelPassword'

/**
 * Scheme, credentials, hosts, path, query. An unescaped `/`, `?` or `#` in a password makes a later
 * `@` stand where none may: such a URL does not match, so nothing of it is taken for a host.
 */
const SHAPE = /^([a-z-]+):\/\/(?:([^/?#]*)@)?([^@/?#]*)(?:\/([^@?#]*))?(?:\?([^@#]*))?$/
const HOST = /^(?:\[([\da-fA-F:.]+)\]|([\w.-]+))(?::(\d{1,5}))?$/
const MAX_PORT = 65_535
const DEFAULT_PORT = 6379
const DEFAULT_SENTINEL_PORT = 26_379

/**
 * `redis://` and `rediss://` (TLS) for one server, `redis-cluster://`, `redis-sentinel://` and their
 * `rediss-` forms for several hosts. The query has TLS files (`ca`, `cert`, `key`, which are read here)
 * and Sentinel's own `db`, `sentinelUsername`, `sentinelPassword`.
 * @throws {RankError} CONFIG_INVALID, which never quotes what may be a password
 */
export function parseRedisUrl(url: string): RedisTarget {
  const scheme = schemeOf(url)
  const kind = KINDS[scheme]
  const [, , credentials, hosts = '', path = '', query = ''] = SHAPE.exec(url) ?? []
  const addresses = parseAddresses(hosts, kind)
  if (addresses === undefined) {
    throw invalid(
      `must be ${scheme}://${FORMS[kind]}, with ports from 1 to ${MAX_PORT} and %2F, %3F, %23 for any / ? # in a password`,
    )
  }
  const [first, ...others] = addresses
  if (first === undefined) throw invalid('must name a host')
  const parameters = parseQuery(query, [
    ...PARAMETERS[kind],
    ...(scheme.startsWith('rediss') ? TLS_PARAMETERS : []),
  ])
  const tls = scheme.startsWith('rediss') ? { tls: readTls(parameters) } : {}
  const common = { addresses, ...parseCredentials(credentials), ...tls }
  switch (kind) {
    case 'single':
      if (others.length > 0) {
        throw invalid(
          `${scheme}:// must have one host, got ${addresses.length}: redis-cluster:// or redis-sentinel://?`,
        )
      }
      return { kind, ...common, db: parseDb(path) }
    case 'cluster':
      if (path !== '') throw invalid(`of a cluster must have no path, got ${show(`/${path}`)}`)
      return { kind, ...common }
    case 'sentinel': {
      const master = decode(path, 'path')
      if (!/^[^/]+$/.test(master)) {
        throw invalid(`must end with the master's name, /mymaster, got ${show(`/${path}`)}`)
      }
      const sentinelUsername = parameters.get('sentinelUsername')
      const sentinelPassword = parameters.get(SECRET)
      return {
        kind,
        ...common,
        master,
        db: parseDb(parameters.get('db') ?? ''),
        ...(sentinelUsername !== undefined && { sentinelUsername }),
        ...(sentinelPassword !== undefined && { sentinelPassword }),
      }
    }
  }
}

/** The URL for a log: `***` in place of passwords; for a URL that does not parse, of all behind the scheme. */
export function redactRedisUrl(url: string): string {
  const [, scheme = '', credentials, hosts = '', path, query] = SHAPE.exec(url) ?? []
  if (!isScheme(scheme)) return '***'
  if (parseAddresses(hosts, KINDS[scheme]) === undefined) return `${scheme}://***`
  const colon = credentials?.indexOf(':') ?? -1
  const user = colon < 0 ? '***' : `${credentials?.slice(0, colon)}:***`
  const known = new Set<string>([...PARAMETERS.sentinel, ...TLS_PARAMETERS])
  const shown = query?.split('&').map((pair) => {
    const name = pair.split('=', 1)[0] ?? ''
    return known.has(name) && name !== SECRET ? pair : `${known.has(name) ? name : '***'}=***`
  })
  return (
    `${scheme}://${credentials === undefined ? '' : `${user}@`}${hosts}` +
    `${path === undefined ? '' : `/${path}`}${shown === undefined ? '' : `?${shown.join('&')}`}`
  )
}

function isScheme(text: string): text is Scheme {
  return Object.hasOwn(KINDS, text)
}

function schemeOf(url: string): Scheme {
  const scheme = /^([A-Za-z][\w+.-]{0,30}):\/\//.exec(url)?.[1]
  if (scheme !== undefined && isScheme(scheme)) return scheme
  const got = scheme === undefined ? 'none' : show(scheme)
  throw invalid(`must start with one of ${Object.keys(KINDS).join('://, ')}://, got ${got}`)
}

/** Undefined when any of them is no host with a port. */
function parseAddresses(
  hosts: string,
  kind: RedisTarget['kind'],
): readonly RedisAddress[] | undefined {
  const addresses: RedisAddress[] = []
  for (const each of hosts.split(',')) {
    const [, v6, name, digits] = HOST.exec(each) ?? []
    const fallback = kind === 'sentinel' ? DEFAULT_SENTINEL_PORT : DEFAULT_PORT
    const port = digits === undefined ? fallback : Number(digits)
    const host = v6 ?? name
    if (host === undefined || port < 1 || port > MAX_PORT) return undefined
    addresses.push({ host, port })
  }
  return addresses
}

function parseCredentials(text: string | undefined) {
  if (text === undefined) return {}
  const colon = text.indexOf(':')
  if (colon < 0 || colon === text.length - 1) {
    throw invalid('must have a password behind the user: user:password@, or :password@')
  }
  const username = decode(text.slice(0, colon), 'user')
  const password = decode(text.slice(colon + 1), 'password')
  return username === '' ? { password } : { username, password }
}

/** Not URLSearchParams: it reads the + of a password as a space. */
function parseQuery(query: string, allowed: readonly string[]): ReadonlyMap<string, string> {
  const parameters = new Map<string, string>()
  if (query === '') return parameters
  for (const pair of query.split('&')) {
    const equals = pair.indexOf('=')
    const name = equals < 0 ? pair : pair.slice(0, equals)
    if (!allowed.includes(name)) {
      const expected = allowed.length === 0 ? 'none' : allowed.join(', ')
      throw invalid(`must have no parameters but ${expected}, got ${show(name)}`)
    }
    if (parameters.has(name)) throw invalid(`must have ${name} once, got it twice`)
    const value = equals < 0 ? '' : decode(pair.slice(equals + 1), name)
    if (value === '') throw invalid(`must have a value for ${name}, got none`)
    parameters.set(name, value)
  }
  return parameters
}

function readTls(parameters: ReadonlyMap<string, string>): RedisTls {
  if (parameters.has('cert') !== parameters.has('key')) {
    const [has, lacks] = parameters.has('cert') ? ['cert', 'key'] : ['key', 'cert']
    throw invalid(`must have cert and key together, got ${has} without ${lacks}`)
  }
  const files = TLS_PARAMETERS.flatMap((name) => {
    const path = parameters.get(name)
    return path === undefined ? [] : [[name, readPem(name, path)]]
  })
  return Object.fromEntries(files)
}

function readPem(name: string, path: string): string {
  try {
    const text = readFileSync(path, 'utf8')
    if (text.includes('-----BEGIN ')) return text
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw invalid(`must name a readable PEM file as ${name}: ${why}`)
  }
  throw invalid(`must name a PEM file as ${name}, got ${show(path)}, which has no "-----BEGIN"`)
}

function parseDb(text: string): number {
  if (text === '') return 0
  const db = /^\d{1,6}$/.test(text) ? Number(text) : undefined
  if (db === undefined) throw invalid(`must have a number as its database, got ${show(text)}`)
  return db
}

function decode(text: string, what: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    throw invalid(`must have % only as %XX in its ${what} (%25 is a %)`)
  }
}

function invalid(message: string): RankError {
  return new RankError('CONFIG_INVALID', `a Redis URL ${message}`)
}
