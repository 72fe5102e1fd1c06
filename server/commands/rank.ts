import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { loadRanker } from '../../falcon/load.js'
import { RankError } from '../../model/errors.js'
import { toAnswer } from '../answer.js'
import { KNOBS } from '../knobs.js'
import { singleModel } from '../models/source.js'
import { parseRank } from '../parse.js'
import { checkAsked, rankOnce } from '../rank.js'
import { DEMO_BUNDLE, ensureDemoBundle } from './demo.js'
import { needFolder } from './export.js'

export const RANK_HELP = `peregrine rank --request FILE [--bundle DIR] [--kernels auto|off|DIR]
    ranks one request, a body of POST /v1/rank, without a server; prints the answer`

const LIMITS = {
  maxHistoryEvents: KNOBS.maxHistoryEvents.fallback,
  maxCandidates: KNOBS.maxCandidates.fallback,
  maxBatchRequests: KNOBS.maxBatchRequests.fallback,
}

export async function rankCommand(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      request: { type: 'string' },
      bundle: { type: 'string', default: DEMO_BUNDLE },
      kernels: { type: 'string', default: KNOBS.kernels.fallback },
    },
  })
  if (values.request === undefined) {
    throw new RankError('INVALID_REQUEST', `rank needs --request\n${RANK_HELP}`)
  }
  const body = readBody(values.request)
  ensureDemoBundle(values.bundle)
  const bundle = needFolder(values.bundle, RANK_HELP)
  const start = performance.now()
  const parsed = parseRank(body, LIMITS, Math.floor(Date.now() / 1000))
  const parseMs = performance.now() - start
  const ranker = await loadRanker({ bundle, kernels: values.kernels })
  try {
    const model = singleModel(() => ranker).lease(parsed.model, parsed.input.user.id)
    checkAsked(model.ranker, parsed)
    const { result, retries } = await rankOnce(model.ranker, parsed, {})
    const run = parsed.explain ? { parseMs, retries } : undefined
    process.stdout.write(`${JSON.stringify(toAnswer(model.id, result, 0, run), null, 2)}\n`)
    return 0
  } finally {
    await ranker.close()
  }
}

function readBody(file: string): unknown {
  try {
    return JSON.parse(readFileSync(file, 'utf8'))
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('INVALID_REQUEST', `cannot read ${file} as JSON: ${why}`, { cause })
  }
}
