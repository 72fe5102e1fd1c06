import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from '../../../model/check.js'
import { type HstuConfig, itemIdOf, readJson } from '../../../model/config.js'
import type { Manifest } from '../../../model/manifest.js'
import type { FeatureValue, RankInput } from '../../../model/request.js'
import type { HistoryTokens } from '../../../model/tokens.js'
import type { GoldenRequest } from './cases.js'

const Ids = Type.Record(Type.String(), Type.Union([Type.Integer(), Type.Null()]))
const Request = Type.Object({
  name: Type.String(),
  queryTime: Type.Integer(),
  context: Ids,
  sources: Type.Array(
    Type.Object({
      events: Type.Array(Type.Object({ t: Type.Integer(), item: Ids, actions: Type.Integer() })),
    }),
  ),
  auxiliary: Type.Record(
    Type.String(),
    Type.Array(
      Type.Object({ t: Type.Integer(), value: Type.Union([Type.Integer(), Type.String()]) }),
    ),
  ),
  candidates: Type.Array(Ids),
  built: Type.Object({
    tokens: Type.Array(
      Type.Object({
        kind: Type.String(),
        t: Type.Integer(),
        rows: Type.Optional(Type.Record(Type.String(), Type.Integer())),
        types: Type.Optional(Type.Array(Type.String())),
      }),
    ),
    candidates: Type.Array(Type.Record(Type.String(), Type.Integer())),
  }),
})
const compiled = Compile(Type.Object({ requests: Type.Array(Request, { minItems: 1 }) }))

/** One request of a golden case's inputs.json: table rows for ids, bit masks for actions. */
export type PaperRequest = Static<typeof Request>

export function paperRequests(file: string, config: HstuConfig): GoldenRequest[] {
  return readGolden(file).map((request) => ({
    name: request.name,
    input: toRankInput(request, config),
    logits: `${request.name}.logits`,
    difference: (tokens, rows, { manifest }) => tokensDifference(request, tokens, rows, manifest),
  }))
}

export function readGolden(file: string): PaperRequest[] {
  return check(compiled, readJson(file, 'CONFIG_INVALID'), 'CONFIG_INVALID', file).requests
}

/** The same request as a client would send it: ids as strings, actions by name. */
export function toRankInput(request: PaperRequest, config: HstuConfig): RankInput {
  const idFeature = itemIdOf(config)
  const item = (ids: Static<typeof Ids>) => ({
    item: String(ids[idFeature] ?? ''),
    features: known(ids, idFeature),
  })
  return {
    user: { id: request.name, features: known(request.context) },
    histories: request.sources.map(({ events }) =>
      events.map(({ t, item: ids, actions }) => ({
        ...item(ids),
        time: t,
        actions: config.actions.filter((_, bit) => (actions >> bit) & 1),
      })),
    ),
    series: Object.fromEntries(
      Object.entries(request.auxiliary).map(([name, entries]) => [
        name,
        entries.map(({ t, value }) => ({ value, time: t })),
      ]),
    ),
    candidates: request.candidates.map(item),
    time: request.queryTime,
  }
}

/** What differs first between built tokens and the case's `built`; undefined when nothing does. */
export function tokensDifference(
  { built }: PaperRequest,
  history: HistoryTokens,
  candidates: Int32Array,
  { embedding, config }: Manifest,
): string | undefined {
  const { slots, tables } = embedding
  const offsetOf = new Map(tables.map(({ name, offset }) => [name, offset]))
  const rowsOf = (rows: Record<string, number> = {}) =>
    Object.entries(rows).map(([table, row]) => (offsetOf.get(table) ?? Number.NaN) + row)
  const same = (got: Int32Array, wanted: readonly number[]) =>
    [...got]
      .filter((row) => row !== 0)
      .sort()
      .join() === wanted.toSorted().join()
  if (history.length !== built.tokens.length) {
    return `${history.length} tokens, expected ${built.tokens.length}`
  }
  for (const [i, { kind, t, rows, types = [] }] of built.tokens.entries()) {
    const isAction = kind === 'action'
    const mask = types.reduce((sum, name) => sum | (1 << config.actions.indexOf(name)), 0)
    const wantedMask = isAction ? mask | (1 << config.actions.length) : 0
    const gotRows = history.rows.subarray(i * slots, (i + 1) * slots)
    if (history.times[i] !== t) return `token ${i} at ${history.times[i]}, expected ${t}`
    if (history.actions[i] !== wantedMask) {
      return `token ${i} with action mask ${history.actions[i]}, expected ${wantedMask}`
    }
    if (!same(gotRows, rowsOf(rows)))
      return `token ${i} with rows ${gotRows}, expected ${rowsOf(rows)}`
  }
  for (const [i, rows] of built.candidates.entries()) {
    const got = candidates.subarray(i * slots, (i + 1) * slots)
    if (!same(got, rowsOf(rows))) return `candidate ${i} with rows ${got}, expected ${rowsOf(rows)}`
  }
  return undefined
}

function known(ids: Static<typeof Ids>, without?: string): { [name: string]: FeatureValue } {
  const features: { [name: string]: FeatureValue } = {}
  for (const [name, id] of Object.entries(ids)) {
    if (id !== null && name !== without) features[name] = id
  }
  return features
}
