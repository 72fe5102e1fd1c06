import Type from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from '../../../model/check.js'
import { type ConfigOf, readJson } from '../../../model/config.js'
import type { Features } from '../../../model/request.js'
import type { GoldenRequest } from './cases.js'

const Rows = Type.Record(Type.String(), Type.Array(Type.Integer()))
const Requests = Type.Object({
  requests: Type.Array(
    Type.Object({
      name: Type.String(),
      queryTime: Type.Integer(),
      context: Type.Record(Type.String(), Type.Union([Type.Integer(), Type.Null()])),
      // Timestamps, action masks, and rows of each item feature.
      history: Rows,
      candidates: Rows,
    }),
    { minItems: 1 },
  ),
})
const compiled = Compile(Requests)

export function dlrmRequests(file: string, config: ConfigOf<'dlrm-v3'>): GoldenRequest[] {
  const { requests } = check(compiled, readJson(file, 'CONFIG_INVALID'), 'CONFIG_INVALID', file)
  const { itemFeature, extraItemFeatures, actionWeights } = config.stated
  const at = (rows: { readonly [feature: string]: number[] }, feature: string, i: number) =>
    rows[feature]?.[i] ?? -1
  const items = (rows: { readonly [feature: string]: number[] }) =>
    (rows[itemFeature] ?? []).map((row, i) => ({
      item: String(row),
      features: Object.fromEntries(extraItemFeatures.map((name) => [name, at(rows, name, i)])),
    }))
  return requests.map(({ name, queryTime, context, history, candidates }) => ({
    name,
    logits: `${name}.logits`,
    input: {
      user: { id: name, features: withoutNulls(context) },
      histories: [
        items(history).map((event, i) => ({
          ...event,
          time: at(history, 'timestamps', i),
          actions: config.actions.filter(
            (_, a) => at(history, 'actions', i) & (actionWeights[a] ?? 0),
          ),
        })),
      ],
      series: {},
      candidates: items(candidates),
      time: queryTime,
    },
  }))
}

function withoutNulls(context: { readonly [slot: string]: number | null }): Features {
  return Object.fromEntries(
    Object.entries(context).flatMap(([slot, row]) => (row === null ? [] : [[slot, row]])),
  )
}
