import Type from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from '../../../model/check.js'
import { type ConfigOf, readJson } from '../../../model/config.js'
import { SLOTS } from '../../../model/research/tokens.js'
import type { HistoryTokens } from '../../../model/tokens.js'
import type { GoldenRequest } from './cases.js'

const Users = Type.Object({
  users: Type.Array(
    Type.Object({
      name: Type.String(),
      itemIds: Type.Array(Type.Integer()),
      timestamps: Type.Array(Type.Integer()),
      queryTime: Type.Integer(),
    }),
    { minItems: 1 },
  ),
})
const compiled = Compile(Users)

/** Users of a next-item case: all items are candidates. */
export function researchRequests(file: string, config: ConfigOf<'research'>): GoldenRequest[] {
  const { users } = check(compiled, readJson(file, 'CONFIG_INVALID'), 'CONFIG_INVALID', file)
  return users.map(({ name, itemIds, timestamps, queryTime }) => ({
    name,
    logits: `${name}.scores`,
    input: {
      user: { id: name },
      histories: [itemIds.map((id, i) => ({ item: String(id), time: timestamps[i] ?? 0 }))],
      series: {},
      candidates: Array.from({ length: config.stated.items }, (_, i) => ({ item: String(i + 1) })),
      time: queryTime,
    },
    stated: (tokens, rows) => withLastRow(tokens, rows, timestamps.at(-1) ?? queryTime),
  }))
}

/** The history with the last event's row, which travels with the candidates. */
function withLastRow(
  { rows, times, length }: HistoryTokens,
  candidates: Int32Array,
  lastTime: number,
): HistoryTokens {
  return {
    rows: Int32Array.from([...rows, ...candidates.subarray(0, SLOTS)]),
    actions: new Int32Array(length + 1),
    times: Float64Array.from([...times, lastTime]),
    length: length + 1,
  }
}
