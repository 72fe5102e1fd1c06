// For tests of several models: bundles of one name and other weights, and an app that serves them.
import { cpSync, mkdirSync, renameSync } from 'node:fs'
import { Registry } from 'prom-client'
import { loadRanker } from '../falcon/load.js'
import type { Measurements } from '../falcon/measured.js'
import { shareStores } from '../falcon/shared-stores.js'
import { createRandom } from '../model/random.js'
import type { RankInput } from '../model/request.js'
import { buildApp } from '../server/app.js'
import { createModelsFolder } from '../server/models/folder.js'
import { peekBundle } from '../server/models/peek.js'
import { createModels, type ModelEvent } from '../server/models/registry.js'
import {
  exportModel,
  type ModelFixture,
  randomRequest,
  type Scope,
  tempFolder,
} from './fixtures.js'
import { LIMITS } from './plain-ranker.js'

/** Models of the same name and shape, each with weights of its own. */
export function exportVersions(scope: Scope): readonly [ModelFixture, ModelFixture, ModelFixture] {
  const make = (seed: number) => exportModel(scope, { seed })
  return [make(101), make(102), make(103)]
}

export const versionOf = ({ bundle }: ModelFixture) => bundle.manifest.version
export const idOf = (model: ModelFixture) => `${model.bundle.manifest.name}@${versionOf(model)}`

/** Puts a copy of a bundle into a folder, whole and at once. */
export function putBundle({ bundle }: ModelFixture, folder: string): void {
  cpSync(bundle.folder, `${folder}.tmp-test`, { recursive: true })
  renameSync(`${folder}.tmp-test`, folder)
}

export type ServedOptions = {
  readonly maxModels?: number
  readonly rampMs?: number
}

/** An app over an empty models' folder; nobody looks into it but the test. */
export async function serveModels(scope: Scope, options: ServedOptions = {}, folder?: string) {
  const modelsDir = folder ?? `${tempFolder(scope)}/models`
  mkdirSync(modelsDir, { recursive: true })
  const events: ModelEvent[] = []
  const faults: string[] = []
  const measurements: Measurements = new Map()
  const shared = shareStores(undefined, {}, () => {})
  const models = createModels({
    peek: peekBundle,
    load: (bundle, { isBackground, onWarming }) =>
      loadRanker({
        ...{ bundle, background: isBackground, shared, measurements, kv: 'always' },
        ...{ workers: 1, threadsPerWorker: 1, microBatchSize: 4, maxKvBytes: 1e6 },
        onEvent: ({ kind }) => {
          if (kind === 'engine') onWarming()
        },
      }),
    maxModels: options.maxModels ?? 8,
    rampMs: options.rampMs ?? 0,
    onEvent: (event) => events.push(event),
  })
  const watched = createModelsFolder({
    folder: modelsDir,
    models,
    onFault: (fault) => faults.push(fault),
  })
  const app = await buildApp({
    ranker: models.ranker,
    models: { all: models, modelsDir, bundles: [], save: watched.save },
    config: { ...LIMITS, maxQueueMs: 60_000 },
    registry: new Registry(),
  })
  let closing: Promise<void> | undefined
  const close = () => {
    closing ??= app.close().then(models.close).then(shared.close)
    return closing
  }
  scope.after(close)
  const send = async (method: 'GET' | 'POST' | 'PUT' | 'DELETE', url: string, body?: object) => {
    const res = await app.inject({ method, url, ...(body && { payload: body }) })
    return { status: res.statusCode, body: res.body === '' ? undefined : res.json() }
  }
  return {
    ...{ app, models, watched, modelsDir, events, faults, measurements, close, send },
    admin: (method: 'GET' | 'POST' | 'PUT' | 'DELETE', path = '', body?: object) =>
      send(method, `/v1/admin/models${path}`, body),
    metrics: async () => (await app.inject('/metrics')).body,
  }
}

export type ServedModels = Awaited<ReturnType<typeof serveModels>>

/** A user's request as a body of POST /v1/rank, and what it asks as the pipeline sees it. */
export function requestFor(
  { config }: ModelFixture,
  user: string,
  seed = 1,
): { readonly input: RankInput; readonly body: { readonly [name: string]: unknown } } {
  const input = randomRequest(config, createRandom(seed), { user, events: 4, candidates: 3 })
  const { user: who, histories, candidates, time } = input
  return { input, body: { user: who, history: histories[0], candidates, time, explain: true } }
}
