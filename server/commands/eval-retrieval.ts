import { readFileSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { loadRanker } from '../../falcon/load.js'
import { RankError } from '../../model/errors.js'
import { openBundle } from '../../model/manifest.js'
import type { HistoryEvent } from '../../model/request.js'
import { roomOf } from '../../model/window.js'
import { KNOBS } from '../knobs.js'
import { needFolder } from './export.js'
import { engineFlag, integer, providerFlag } from './flags.js'
import { readInteractions } from './interactions.js'
import { createProgress } from './progress.js'
import { replayAll } from './replay.js'
import { DEEPEST, rankIn, retrievalQuality } from './retrieval-metrics.js'

export const EVAL_RETRIEVAL_HELP = `peregrine eval-retrieval --data FILE --bundle DIR [--users N] [--url URL [--api-key-file FILE]] [--ranks FILE] [--provider cpu|cuda] [--engine node|capi] [--json]
    retrieves each user's last event from those before it, as many as the model holds; the items of that
    history are left out. Prints hit rates and NDCG. FILE is a CSV with the columns user, item and ts
    --users N: only the first N users of the file
    --url URL: asks POST /v1/retrieve of a server that serves the bundle, in place of this process
    --api-key-file FILE: holds the API key for that server, of scope rank
    --ranks FILE: writes {user: place of the last event's item, null below the ${DEEPEST}th} as JSON`

/** Ids of the items that a user should meet next, best first. */
type Retrieve = (user: string, history: readonly HistoryEvent[], time: number) => Promise<string[]>

type Flags = {
  readonly url?: string
  readonly 'api-key-file'?: string
  readonly provider: string
  readonly engine: string
}

export async function evalRetrievalCommand(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      data: { type: 'string' },
      bundle: { type: 'string' },
      users: { type: 'string' },
      url: { type: 'string' },
      'api-key-file': { type: 'string' },
      ranks: { type: 'string' },
      provider: { type: 'string', default: 'cpu' },
      engine: { type: 'string', default: KNOBS.engine.fallback },
      json: { type: 'boolean', default: false },
    },
  })
  if (values.data === undefined) {
    throw new RankError('INVALID_REQUEST', `eval-retrieval needs --data\n${EVAL_RETRIEVAL_HELP}`)
  }
  const bundle = needFolder(values.bundle, EVAL_RETRIEVAL_HELP)
  const { config, name } = openBundle(bundle).manifest
  const room = roomOf(config)
  const all = await readInteractions(values.data)
  const users =
    values.users === undefined ? all : all.slice(0, integer('--users', values.users, 1, 1e9))
  const { retrieve, close } = await open(bundle, name, values)
  try {
    const progress = createProgress(`eval-retrieval ${name}`, users.length)
    const ranks = new Map<string, number>()
    await replayAll(users, async ({ id, history, target }) => {
      ranks.set(id, rankIn(await retrieve(id, history.slice(-room), target.time), target.item))
      progress.advance()
    })
    const quality = retrievalQuality([...ranks.values()])
    if (values.ranks !== undefined) {
      writeFileSync(values.ranks, `${JSON.stringify(Object.fromEntries(ranks))}\n`)
    }
    process.stdout.write(
      values.json
        ? `${JSON.stringify({ ...quality, users: users.length })}\n`
        : `${Object.entries(quality)
            .map(([metric, value]) => `${metric.padStart(10)}  ${value.toFixed(4)}\n`)
            .join('')}${users.length} users\n`,
    )
    return 0
  } finally {
    await close()
  }
}

/** The pipeline in this process, or a server. */
async function open(
  bundle: string,
  model: string,
  { url, 'api-key-file': keyFile, provider, engine }: Flags,
): Promise<{ retrieve: Retrieve; close(): Promise<void> }> {
  if (url !== undefined) {
    return { retrieve: overHttp(url, model, keyIn(keyFile)), close: async () => {} }
  }
  const ranker = await loadRanker({
    bundle,
    provider: providerFlag(provider),
    engine: engineFlag(engine),
  })
  return {
    async retrieve(id, history, time) {
      const { items } = await ranker.retrieve(
        {
          ...{ user: { id }, histories: [history], series: {}, time },
          ...{ exclude: [], excludeHistory: true },
        },
        { topK: DEEPEST },
      )
      return items.map(({ item }) => item)
    },
    close: () => ranker.close(),
  }
}

/** A file and no flag: whoever may list processes sees those. */
function keyIn(file: string | undefined): string | undefined {
  if (file === undefined) return undefined
  try {
    return readFileSync(file, 'utf8').trim()
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('INVALID_REQUEST', `--api-key-file: ${why}`, { cause })
  }
}

function overHttp(url: string, model: string, key: string | undefined): Retrieve {
  const address = new URL('/v1/retrieve', url)
  const headers = {
    'content-type': 'application/json',
    ...(key !== undefined && { 'x-api-key': key }),
  }
  return async (id, history, time) => {
    const response = await fetch(address, {
      method: 'POST',
      headers,
      body: JSON.stringify({ model, user: { id }, history, time, topK: DEEPEST }),
    })
    const text = await response.text()
    if (!response.ok) {
      throw new RankError('INVALID_REQUEST', `${address} answered ${response.status}: ${text}`)
    }
    return itemsOf(JSON.parse(text), text)
  }
}

function itemsOf(answer: { readonly items?: unknown }, text: string): string[] {
  const { items } = answer
  if (!Array.isArray(items)) {
    throw new RankError(
      'INVALID_REQUEST',
      `expected items in the answer, got ${text.slice(0, 200)}`,
    )
  }
  return items.map(({ item }) => String(item))
}
