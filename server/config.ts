import { parseArgs } from 'node:util'
import { show } from '../model/check.js'
import { RankError } from '../model/errors.js'
import type { Knob } from './knob.js'
import { KNOBS } from './knobs.js'

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
