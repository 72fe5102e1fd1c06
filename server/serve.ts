import type { Logger } from 'pino'
import { collectDefaultMetrics, Registry } from 'prom-client'
import type { Ranker } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import { buildApp } from './app.js'
import { readBuild } from './build.js'
import { bundlesOf, type ConfigSources, printConfig, type ServerConfig } from './config.js'
import { hasFiles, openCredentials } from './credentials.js'
import { createListener } from './listener.js'
import { createLogger } from './log.js'
import { addBuildInfo } from './metrics.js'
import { createModelsFolder } from './models/folder.js'
import { peekBundle } from './models/peek.js'
import { createModels, type LoadHow, type ModelEvent } from './models/registry.js'
import { openTracing } from './tracing.js'

/** A new bundle serves some seconds after it is complete; looking costs less than a millisecond. */
const LOOK_EVERY_MS = 1000
const WARNINGS = new Set<ModelEvent['kind']>(['modelFailed', 'modelOrphaned'])

type Signal = 'SIGTERM' | 'SIGINT' | 'SIGHUP'

/** Where signals come from: `process`, or an EventEmitter in a test. */
export type SignalSource = {
  on(signal: Signal, listener: (signal: Signal) => void): unknown
  off(signal: Signal, listener: (signal: Signal) => void): unknown
}

export type ServeOptions = {
  readonly config: ServerConfig
  /** Logged at boot beside each value. */
  readonly sources?: ConfigSources
  /** What a folder holds; a bundle's manifest says it when absent. */
  readonly peek?: typeof peekBundle
  /** Loads and warms the bundle in a folder; what it answers is ready to rank. */
  readonly loadRanker: (config: ServerConfig, log: Logger, what: ToLoad) => Promise<Ranker>
  /** Called at the end, after every ranker is closed. */
  readonly closeStores?: () => Promise<void>
  readonly log?: Logger
  readonly signals?: SignalSource
  /** Ends the process at once. Not process.exit: it aborts the process while an inference runs. */
  readonly forceExit?: () => void
  /** Gets the code the process shall end with, once nothing keeps it alive. */
  readonly setExitCode?: (code: number) => void
}

export type ToLoad = LoadHow & { readonly folder: string }

export type Served = {
  readonly url: string
  /** True when the models are there, false when one of `bundle` did not load. */
  readonly loaded: Promise<boolean>
  /** Resolves when everything is closed, by a signal, by `stop`, or because the load failed. */
  readonly stopped: Promise<void>
  /** What the first signal does. */
  stop(why: string): Promise<void>
}

/**
 * Listens at once, then loads the model, then is ready. The first SIGTERM or SIGINT drains (not
 * ready, still listening for `drainDelayMs`, then what is in flight) and closes, the second kills.
 * SIGHUP reads API keys and certificates again.
 * @throws {RankError} CONFIG_INVALID when the address cannot be listened on, or a file not be used
 */
export async function serve(options: ServeOptions): Promise<Served> {
  const { config, sources, loadRanker, signals = process } = options
  const log = options.log ?? createLogger(config.logLevel)
  const forceExit = options.forceExit ?? (() => process.kill(process.pid, 'SIGKILL'))
  const setExitCode =
    options.setExitCode ??
    ((code: number) => {
      process.exitCode = code
    })

  const build = readBuild()
  log.info({ config: printConfig(config, sources), build }, 'configuration')
  const credentials = openCredentials(config, log)
  const { keys, tls } = credentials
  const listener = createListener({ tls, maxConnections: config.maxConnections })
  credentials.onTls(listener.setTls)
  const registry = new Registry()
  collectDefaultMetrics({ register: registry })
  addBuildInfo(registry, build)
  const tracing = await openTracing(build, log)
  const models = createModels({
    peek: options.peek ?? peekBundle,
    load: (folder, how) => loadRanker(config, log, { folder, ...how }),
    maxModels: config.maxModels,
    rampMs: 1000 * config.promoteRampSec,
    ...(config.defaultModel !== '' && { defaultName: config.defaultModel }),
    onEvent: (event) => log[WARNINGS.has(event.kind) ? 'warn' : 'info'](event, event.kind),
  })
  const bundles = bundlesOf(config)
  const modelsFolder =
    config.modelsDir === ''
      ? undefined
      : createModelsFolder({
          folder: config.modelsDir,
          models,
          onFault: (fault) => log.warn({ modelsDir: config.modelsDir }, fault),
        })
  let stopping: Promise<void> | undefined
  let finish = () => {}
  const stopped = new Promise<void>((resolve) => {
    finish = resolve
  })
  const app = await buildApp({
    ranker: models.ranker,
    models: {
      all: models,
      bundles,
      ...(modelsFolder !== undefined && { modelsDir: modelsFolder.folder }),
      save: async () => modelsFolder?.save(),
    },
    isDraining: () => stopping !== undefined,
    config,
    registry,
    ...(tracing !== undefined && { tracing }),
    logger: log,
    listener,
    corsOrigins: config.corsOrigins,
    ...(keys !== undefined && { keys }),
  })
  const { host, port } = config
  const address = await app.listen({ host, port }).catch((cause: unknown) => {
    credentials.close()
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('CONFIG_INVALID', `cannot listen on ${host}:${port}: ${why}`, { cause })
  })
  // Fastify says http of every server that it did not make itself.
  const url = address.replace(/^http:/, `${listener.scheme}:`)
  const where = [...bundles, ...(modelsFolder === undefined ? [] : [modelsFolder.folder])].join(
    ', ',
  )
  log.info({ url }, `listening on ${url}; loading ${where}`)

  function stop(why: string): Promise<void> {
    stopping ??= drain(why)
    return stopping
  }

  /** Never rejects: a fault while closing is logged and ends the process with code 1. */
  async function drain(why: string): Promise<void> {
    const { drainDelayMs } = config
    log.info({ why, drainDelayMs }, 'draining')
    // /readyz says so from now on; whoever asks it sends requests until it has asked again. While the
    // model was loading nobody sent any.
    if (models.ranker() !== undefined)
      await new Promise((resolve) => setTimeout(resolve, drainDelayMs))
    const timer = setTimeout(() => {
      log.warn({ shutdownTimeoutMs: config.shutdownTimeoutMs }, 'drain timed out: closing anyway')
      app.server.closeAllConnections()
    }, config.shutdownTimeoutMs)
    try {
      await app.close()
      clearTimeout(timer)
      modelsFolder?.stop()
      await loaded
      await models.close()
      await options.closeStores?.()
      await tracing?.close()
      log.info('stopped')
    } catch (error) {
      log.error({ err: error }, 'closing failed')
      setExitCode(1)
    } finally {
      clearTimeout(timer)
      signals.off('SIGTERM', onSignal)
      signals.off('SIGINT', onSignal)
      signals.off('SIGHUP', credentials.reload)
      credentials.close()
      log.flush()
      finish()
    }
  }

  function onSignal(signal: Signal): void {
    if (stopping !== undefined) {
      log.warn({ signal }, 'second signal: killed')
      forceExit()
      return
    }
    setExitCode(0)
    void stop(signal)
  }

  async function load(): Promise<boolean> {
    const startMs = performance.now()
    for (const bundle of bundles) {
      try {
        await models.load(bundle).ready
      } catch (error) {
        log.fatal({ err: error }, `cannot load ${bundle}`)
        setExitCode(1)
        // Not awaited: the stop waits for this load to end.
        void stop('load failed')
        return false
      }
    }
    await modelsFolder?.open()
    if (stopping === undefined) modelsFolder?.start(LOOK_EVERY_MS)
    const tookMs = Math.round(performance.now() - startMs)
    const ranker = models.ranker()
    if (ranker === undefined) {
      log.warn({ tookMs }, `not ready: no bundle of the default model in ${where} yet`)
      return true
    }
    // Item ids are not for logs.
    const { exampleItems: _, ...model } = ranker.model
    log.info({ model, tookMs }, `ready: ${readyAt(url, config)}`)
    return true
  }

  signals.on('SIGTERM', onSignal)
  signals.on('SIGINT', onSignal)
  // Else it ends the process, as when its terminal closes.
  if (hasFiles(config)) signals.on('SIGHUP', credentials.reload)
  const loaded = load()
  return { url, loaded, stopped, stop }
}

function readyAt(url: string, { playground, apiKeysFile }: ServerConfig): string {
  const key = apiKeysFile === '' ? '' : " -H 'x-api-key: …'"
  return `${playground ? `try it at ${url}/, ` : ''}${url}/docs, or ${tryIt(url)}${key}`
}

function tryIt(url: string): string {
  const body = JSON.stringify({ user: { id: 'u1' }, candidates: ['1', '2'] })
  return `curl ${url}/v1/rank -H 'content-type: application/json' -d '${body}'`
}
