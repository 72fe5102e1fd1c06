import type { HstuConfig } from '../../../model/config.js'
import { RankError } from '../../../model/errors.js'
import { openSafetensors } from '../../../model/export/safetensors.js'
import type { Bundle } from '../../../model/manifest.js'
import type { RankInput } from '../../../model/request.js'
import { buildCandidates, buildHistory } from '../../../model/sequence.js'
import type { HistoryTokens } from '../../../model/tokens.js'
import { dlrmRequests } from './dlrm-v3.js'
import { paperRequests } from './paper.js'
import { researchRequests } from './research.js'

/** One request of a golden case, as a client would send it. */
export type GoldenRequest = {
  readonly name: string
  readonly input: RankInput
  /** Tensor of the expected logits (m, tasks). */
  readonly logits: string
  /** The history whose K and V the case states, where it is not the one that candidates see. */
  readonly stated?: (tokens: HistoryTokens, rows: Int32Array) => HistoryTokens
  /** What differs first between built tokens and what the case says of them. */
  readonly difference?: (
    tokens: HistoryTokens,
    rows: Int32Array,
    bundle: Bundle,
  ) => string | undefined
}

export type Case = {
  readonly name: string
  readonly history: HistoryTokens
  /** (m, slots) */
  readonly candidates: Int32Array
  readonly m: number
  readonly queryTime: number
  /** The history of `k` and `v`. */
  readonly stated: HistoryTokens
  /** (m, tasks) */
  readonly logits: Float32Array
  /** Per layer. */
  readonly k: readonly Float32Array[]
  readonly v: readonly Float32Array[]
}

/**
 * The requests of a golden case with what it expects of them.
 * @throws {RankError} MODEL_CONTRACT where sequence building gives other tokens than the case says
 */
export function readCases(folder: string, bundle: Bundle): Case[] {
  const { config } = bundle.manifest
  const expected = openSafetensors(`${folder}/expected.safetensors`)
  try {
    return requestsOf(`${folder}/inputs.json`, config).map((request) => {
      const { name, input } = request
      const built = buildHistory(input, bundle.vocabulary)
      const history = built.tokens
      const { rows: candidates } = buildCandidates(input, bundle.vocabulary, built)
      const difference = request.difference?.(history, candidates, bundle)
      if (difference !== undefined) {
        const message = `request ${name}: sequence building gave ${difference}`
        throw new RankError('MODEL_CONTRACT', message)
      }
      const perLayer = (letter: string) =>
        Array.from({ length: config.layers }, (_, i) => expected.read(`${name}.${letter}.${i}`))
      return {
        ...{ name, history, candidates },
        m: input.candidates.length,
        queryTime: input.time,
        stated: request.stated?.(history, candidates) ?? history,
        logits: expected.read(request.logits),
        k: perLayer('k'),
        v: perLayer('v'),
      }
    })
  } finally {
    expected.close()
  }
}

/** The one place that chooses how a variant's cases are written. */
function requestsOf(file: string, config: HstuConfig): GoldenRequest[] {
  switch (config.variant) {
    case 'paper':
      return paperRequests(file, config)
    case 'research':
      return researchRequests(file, config)
    case 'dlrm-v3':
      return dlrmRequests(file, config)
  }
}
