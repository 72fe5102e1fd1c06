import { parseArgs } from 'node:util'
import { KV_MODES } from '../cache/decide.js'
import { DEFAULT_EVENT_LIMITS } from '../cache/events.js'
import { show } from '../model/check.js'
import { KV_CODECS } from '../model/engine/codec/graphs.js'
import { ENGINES } from '../model/engine/create.js'
import { RankError } from '../model/errors.js'
import { DEMO_BUNDLE } from './commands/demo.js'
import { choice, integer, type Knob, origins, redisUrl, text, texts, toggle } from './knob.js'

const MiB = 2 ** 20

/** Every setting of the server. Flags are `--kebab-case`, variables `PEREGRINE_UPPER_CASE`. */
export const KNOBS = {
  bundle: texts(
    'Bundles to serve, several separated by commas; requests that name no model get the first',
    'the path of a bundle directory',
    DEMO_BUNDLE,
  ),
  modelsDir: text(
    'Folder whose subfolders are bundles, watched; --bundle has no default then',
    'the path of a directory',
    '',
  ),
  defaultModel: text(
    'Model that requests get which name none; none = the first that is loaded',
    'the name of a model',
    '',
  ),
  maxModels: integer('Most versions of models at once', 8, 1, 1000),
  promoteRampSec: integer(
    'How long a promotion takes to move the users, so that their K/V is not made all at once',
    10,
    0,
    86_400,
  ),
  host: text('Address to listen on', 'a host name or address', '127.0.0.1'),
  port: integer('Port to listen on; 0 picks a free one', 8080, 0, 65_535),
  apiKeysFile: text('API keys, see `peregrine key`; none = everybody may do all', 'a file', ''),
  tlsCert: text('Certificate for HTTPS, read again when it changes', 'a PEM file', ''),
  tlsKey: text('Its private key', 'a PEM file', ''),
  tlsClientCa: text('Who signs the certificates that clients shall have', 'a PEM file', ''),
  corsOrigins: origins('Origins whose pages may call'),
  maxConnections: integer('Most connections; more are closed at once', 4096, 1, 1_000_000),
  logLevel: choice('Least severe level that is logged', 'info', [
    'trace',
    'debug',
    'info',
    'warn',
    'error',
    'fatal',
    'silent',
  ]),
  playground: toggle('Serve the playground at /; the demo model brings sample users', true),
  bodyLimitBytes: integer('Largest request body', 16 * MiB, 1024, 512 * MiB),
  maxHistoryEvents: integer(
    'Most events of one request, over all histories and series',
    100_000,
    1,
    10_000_000,
  ),
  maxCandidates: integer('Most candidates of one request', 20_000, 1, 10_000_000),
  maxBatchRequests: integer('Most requests of one batch', 64, 1, 10_000),
  // What a caller with a timeout of a few hundred milliseconds can still use; a longer queue serves
  // nobody better, it only makes everybody late.
  maxQueueMs: integer(
    'Longest predicted wait of a request for its turn; what would wait longer is refused with 429',
    100,
    1,
    600_000,
  ),
  bodyBudgetBytes: integer(
    'Memory for request bodies at once; more are refused with 429',
    256 * MiB,
    1024,
    2 ** 44,
  ),
  kvBytes: integer(
    'Memory for cached K/V, with the share of the GPU; 0 = 512 MiB, or all that a GPU has for it',
    0,
    0,
    2 ** 44,
  ),
  kv: choice(
    'When K/V is kept and used: auto = where it is predicted to cost less, always, never',
    'auto',
    KV_MODES,
  ),
  gpuKvBytes: integer(
    'Share of it on the GPU, engine capi; 0 = half of what is free after loading',
    0,
    0,
    2 ** 44,
  ),
  engine: choice('What runs the model; auto = capi where it runs, else node', 'auto', ENGINES),
  workers: integer(
    'Runs at a time; capi on CPUs has at most UV_THREADPOOL_SIZE - 1; 0 = from the cores',
    0,
    0,
    1024,
  ),
  threadsPerWorker: integer('Threads of each run; 0 = from the cores', 0, 0, 1024),
  provider: choice('Where inference runs', 'cpu', ['cpu', 'cuda']),
  deviceId: integer('CUDA device', 0, 0, 1023),
  cudaFallback: toggle('Use the CPU when CUDA is missing', false),
  kernels: text(
    'Kernel libraries, engine capi: auto = the ones installed or built, off = none',
    'auto, off or a folder with kernels.json',
    'auto',
  ),
  microBatchSize: integer('Candidates of one micro-batch; 0 = calibrate', 0, 0, 1_048_576),
  redisUrl: redisUrl(
    'Redis for K/V and stored histories, shared by all replicas; none = in this process',
  ),
  redisCodec: choice('How K/V is written to Redis', 'fp16', KV_CODECS),
  redisConnections: integer('Connections that K/V is read by', 1, 1, 256),
  kvTtlSec: integer('How long K/V stays in Redis after its last write', 86_400, 1, 31_536_000),
  maxStoredEvents: integer(
    'Events of a user that are stored; the oldest go',
    DEFAULT_EVENT_LIMITS.maxStoredEvents,
    1,
    1_000_000,
  ),
  eventsTtlSec: integer(
    'How long a user is stored after the last event',
    DEFAULT_EVENT_LIMITS.ttlSec,
    1,
    315_360_000,
  ),
  windowSlack: integer(
    'Events that the window of a full history moves at a time; 0 = a sixteenth of it',
    0,
    0,
    1_048_576,
  ),
  drainDelayMs: integer(
    'How long a stop still takes new connections, /readyz at 503, until load balancers know',
    0,
    0,
    600_000,
  ),
  shutdownTimeoutMs: integer('How long a stop waits for requests in flight', 10_000, 0, 600_000),
}

export type ServerConfig = {
  readonly [K in keyof typeof KNOBS]: (typeof KNOBS)[K] extends Knob<infer T> ? T : never
}
export type ConfigSource = 'default' | 'env' | 'flag'
export type ConfigSources = ReadonlyMap<keyof ServerConfig, ConfigSource>
export type LoadedConfig = { readonly config: ServerConfig; readonly sources: ConfigSources }

type Env = { readonly [name: string]: string | undefined }

const NAMES = Object.keys(KNOBS)
/** Kubernetes sets these in every pod beside a service that is called peregrine. */
const SERVICE_LINK = /^PEREGRINE_(SERVICE|PORT)_/

/**
 * The configuration: flags before variables before defaults; frozen.
 * @throws {RankError} CONFIG_INVALID naming the flag or variable, what was expected and what was got
 */
export function parseServerConfig(args: readonly string[], env: Env): LoadedConfig {
  const unknown = Object.keys(env).find(
    (name) =>
      name.startsWith('PEREGRINE_') &&
      !SERVICE_LINK.test(name) &&
      !NAMES.map(envName).includes(name),
  )
  if (unknown !== undefined) {
    throw invalid(`unknown variable ${unknown}: expected one of ${NAMES.map(envName).join(', ')}`)
  }
  const flags = parseFlags(args)
  const sources = new Map<keyof ServerConfig, ConfigSource>()

  function pick<T>(name: keyof ServerConfig, knob: Knob<T>): T {
    const flag = flags[name]
    const raw = flag ?? env[envName(name)]
    if (raw === undefined) {
      sources.set(name, 'default')
      return knob.fallback
    }
    sources.set(name, flag === undefined ? 'env' : 'flag')
    const where = flag === undefined ? envName(name) : `--${flagName(name)}`
    const value = readKnob(where, knob, raw)
    if (value !== undefined) return value
    const link = raw.startsWith('tcp://') ? ' (a Kubernetes service link: disable them)' : ''
    throw invalid(`${where} must be ${knob.expected}, got ${show(raw)}${link}`)
  }

  const config: ServerConfig = {
    bundle: pick('bundle', KNOBS.bundle),
    modelsDir: pick('modelsDir', KNOBS.modelsDir),
    defaultModel: pick('defaultModel', KNOBS.defaultModel),
    maxModels: pick('maxModels', KNOBS.maxModels),
    promoteRampSec: pick('promoteRampSec', KNOBS.promoteRampSec),
    host: pick('host', KNOBS.host),
    port: pick('port', KNOBS.port),
    apiKeysFile: pick('apiKeysFile', KNOBS.apiKeysFile),
    tlsCert: pick('tlsCert', KNOBS.tlsCert),
    tlsKey: pick('tlsKey', KNOBS.tlsKey),
    tlsClientCa: pick('tlsClientCa', KNOBS.tlsClientCa),
    corsOrigins: pick('corsOrigins', KNOBS.corsOrigins),
    maxConnections: pick('maxConnections', KNOBS.maxConnections),
    logLevel: pick('logLevel', KNOBS.logLevel),
    playground: pick('playground', KNOBS.playground),
    bodyLimitBytes: pick('bodyLimitBytes', KNOBS.bodyLimitBytes),
    maxHistoryEvents: pick('maxHistoryEvents', KNOBS.maxHistoryEvents),
    maxCandidates: pick('maxCandidates', KNOBS.maxCandidates),
    maxBatchRequests: pick('maxBatchRequests', KNOBS.maxBatchRequests),
    maxQueueMs: pick('maxQueueMs', KNOBS.maxQueueMs),
    bodyBudgetBytes: pick('bodyBudgetBytes', KNOBS.bodyBudgetBytes),
    kvBytes: pick('kvBytes', KNOBS.kvBytes),
    kv: pick('kv', KNOBS.kv),
    gpuKvBytes: pick('gpuKvBytes', KNOBS.gpuKvBytes),
    engine: pick('engine', KNOBS.engine),
    workers: pick('workers', KNOBS.workers),
    threadsPerWorker: pick('threadsPerWorker', KNOBS.threadsPerWorker),
    provider: pick('provider', KNOBS.provider),
    deviceId: pick('deviceId', KNOBS.deviceId),
    cudaFallback: pick('cudaFallback', KNOBS.cudaFallback),
    kernels: pick('kernels', KNOBS.kernels),
    microBatchSize: pick('microBatchSize', KNOBS.microBatchSize),
    redisUrl: pick('redisUrl', KNOBS.redisUrl),
    redisCodec: pick('redisCodec', KNOBS.redisCodec),
    redisConnections: pick('redisConnections', KNOBS.redisConnections),
    kvTtlSec: pick('kvTtlSec', KNOBS.kvTtlSec),
    maxStoredEvents: pick('maxStoredEvents', KNOBS.maxStoredEvents),
    eventsTtlSec: pick('eventsTtlSec', KNOBS.eventsTtlSec),
    windowSlack: pick('windowSlack', KNOBS.windowSlack),
    drainDelayMs: pick('drainDelayMs', KNOBS.drainDelayMs),
    shutdownTimeoutMs: pick('shutdownTimeoutMs', KNOBS.shutdownTimeoutMs),
  }
  if (config.bodyLimitBytes > config.bodyBudgetBytes) {
    const { bodyLimitBytes, bodyBudgetBytes } = config
    throw invalid(
      `--body-limit-bytes must be at most --body-budget-bytes (${bodyBudgetBytes}), got ${bodyLimitBytes}`,
    )
  }
  if (config.kvBytes > 0 && config.gpuKvBytes > config.kvBytes) {
    const { gpuKvBytes, kvBytes } = config
    throw invalid(
      `--gpu-kv-bytes must be at most --kv-bytes (${kvBytes}), which counts it, got ${gpuKvBytes}`,
    )
  }
  if ((config.tlsCert === '') !== (config.tlsKey === '')) {
    const [got, other] = config.tlsKey === '' ? ['cert', 'key'] : ['key', 'cert']
    throw invalid(
      `--tls-cert and --tls-key need each other, got --tls-${got} without --tls-${other}`,
    )
  }
  if (config.tlsClientCa !== '' && config.tlsCert === '') {
    throw invalid('--tls-client-ca needs --tls-cert and --tls-key, got none')
  }
  // Whoever has models of their own does not want the demo's beside them.
  const isOwn = config.modelsDir !== '' && sources.get('bundle') === 'default'
  return { config: Object.freeze(isOwn ? { ...config, bundle: '' } : config), sources }
}

/** The folders of `bundle`. */
export function bundlesOf({ bundle }: Pick<ServerConfig, 'bundle'>): readonly string[] {
  return bundle === '' ? [] : bundle.split(',')
}

/** Each setting as a log may show it, with where it came from. */
export function printConfig(config: ServerConfig, sources?: ConfigSources) {
  return Object.fromEntries(
    Object.entries<Knob<unknown>>(KNOBS).map(([name, knob]) => {
      const value: unknown = Reflect.get(config, name)
      const text = show(knob.print === undefined ? value : knob.print(value))
      const source = [...(sources ?? [])].find(([key]) => key === name)?.[1]
      return [name, source === undefined ? text : `${text} (${source})`]
    }),
  )
}

function readKnob<T>(where: string, knob: Knob<T>, raw: string): T | undefined {
  try {
    return knob.read(raw)
  } catch (error) {
    if (error instanceof RankError) throw invalid(`${where}: ${error.message}`)
    throw error
  }
}

/** One line per flag, for `--help`. */
export function configHelp(): string {
  return Object.entries<Knob<unknown>>(KNOBS)
    .map(([name, { what, expected, fallback }]) => {
      return `  --${flagName(name).padEnd(22)}${what}: ${expected} (default ${String(fallback) === '' ? 'none' : fallback}; ${envName(name)})`
    })
    .join('\n')
}

/** Texts of the given flags by setting. */
function parseFlags(args: readonly string[]): Env {
  const options = Object.fromEntries(
    Object.entries<Knob<unknown>>(KNOBS).map(([name, { isSwitch, isList = false }]) => [
      flagName(name),
      { type: isSwitch ? ('boolean' as const) : ('string' as const), multiple: isList },
    ]),
  )
  try {
    const { values } = parseArgs({ args: [...args], options, allowNegative: true })
    return Object.fromEntries(
      NAMES.flatMap((name) => {
        const value = values[flagName(name)]
        return value === undefined ? [] : [[name, String(value)]]
      }),
    )
  } catch (cause) {
    throw invalid(cause instanceof Error ? cause.message : String(cause), cause)
  }
}

function flagName(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

function envName(name: string): string {
  return `PEREGRINE_${flagName(name).replaceAll('-', '_').toUpperCase()}`
}

function invalid(message: string, cause?: unknown): RankError {
  return new RankError('CONFIG_INVALID', message, { cause })
}
