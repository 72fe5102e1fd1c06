import type { ConfigOf } from '../../model/config.js'
import { SLOT } from '../../model/research/tokens.js'
import { embeddingLayout } from '../../model/schemes.js'
import type { HistoryTokens } from '../../model/tokens.js'
import { at, type Matrix, matrix } from '../matrix.js'
import type { ReferenceEnds, Row } from './ends.js'

/** The query row is the user's last event; every candidate's row begins with it. */
export function researchEnds(config: ConfigOf<'research'>, rowOf: Row): ReferenceEnds {
  const { slots } = embeddingLayout(config)
  const d = config.dModel
  const eps = config.stated.outputNormEps ?? 1e-6
  const rowsOf = ({ rows }: HistoryTokens, candidates: Int32Array) => [
    ...rows,
    ...candidates.subarray(0, slots),
  ]
  return {
    embed(history, candidates) {
      const rows = rowsOf(history, candidates)
      const x = matrix(history.length + 1, d)
      x.data.forEach((_, i) => {
        const token = Math.floor(i / d) * slots
        const value = (slot: number) => at(rowOf('embedding', rows[token + slot] ?? 0), i % d)
        x.data[i] = value(SLOT.item) + value(SLOT.position)
      })
      return x
    },
    times(history, candidates, queryTime) {
      const rows = rowsOf(history, candidates)
      const toNext = (i: number) => rows[i * slots + SLOT.secondsToNext] ?? 0
      const own = [...history.times, queryTime - toNext(history.length)]
      return { own, compared: own.map((time, i) => time + toNext(i)) }
    },
    bucket,
    head({ data: user }: Matrix, candidates) {
      const logits = new Float64Array(candidates.length / slots)
      logits.forEach((_, c) => {
        const row = candidates[c * slots + SLOT.candidate] ?? 0
        // The table holds items times sqrt(D).
        const item = rowOf('embedding', row).map((value) => value / Math.sqrt(d))
        const dot = item.reduce((sum, value, i) => sum + value * at(user, i), 0)
        logits[c] = dot / Math.max(norm(item), eps) / Math.max(norm(user), eps)
      })
      return logits
    },
  }
}

/** clamp(trunc(ln(max(|s|, 1)) / 0.301), 0, 128) of a difference in whole seconds. */
function bucket(seconds: number): number {
  return Math.min(Math.trunc(Math.log(Math.max(Math.abs(seconds), 1)) / 0.301), 128)
}

function norm(x: Float64Array): number {
  return Math.sqrt(x.reduce((sum, value) => sum + value * value, 0))
}
