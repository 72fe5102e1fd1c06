import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'
import { loadRanker } from '../../falcon/load.js'
import type { Ranker } from '../../falcon/types.js'
import { openBundle } from '../../model/manifest.js'
import { KNOBS } from '../config.js'
import { DEMO_BUNDLE, ensureDemoBundle } from './demo.js'
import { needFolder } from './export.js'
import { integer } from './flags.js'
import { type KuaiRandUser, readKuaiRand } from './kuairand.js'
import { createProgress } from './progress.js'
import { type TaskQuality, taskQuality } from './score-metrics.js'

export const EVAL_HELP = `peregrine eval --data DIR [--bundle DIR] [--users N] [--kernels auto|off|DIR] [--json]
    replays KuaiRand-Pure's test days (5-8 May 2022) through the ranking pipeline, one request per
    exposure with all earlier exposures as history; prints AUC and NE per task
    --users N: only the first N users of the log`

/** Users in flight: enough to keep every worker busy while another request is being sequenced. */
const USERS_PER_CORE = 2

type Collected = { readonly logits: number[]; readonly labels: number[] }

export async function evalCommand(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      data: { type: 'string' },
      bundle: { type: 'string', default: DEMO_BUNDLE },
      users: { type: 'string' },
      kernels: { type: 'string', default: KNOBS.kernels.fallback },
      json: { type: 'boolean', default: false },
    },
  })
  const data = needFolder(values.data, `eval needs --data\n${EVAL_HELP}`)
  ensureDemoBundle(values.bundle)
  const bundle = needFolder(values.bundle, EVAL_HELP)
  const contextNames = openBundle(bundle).manifest.config.context.map(({ name }) => name)
  const ranker = await loadRanker({ bundle, kernels: values.kernels })
  try {
    const all = await readKuaiRand(data)
    const users =
      values.users === undefined ? all : all.slice(0, integer('--users', values.users, 1, 1e9))
    const total = users.reduce((sum, { events }) => sum + events.filter((e) => e.isTest).length, 0)
    const progress = createProgress(`eval ${ranker.model.name}`, total)
    const collected = ranker.model.tasks.map((): Collected => ({ logits: [], labels: [] }))
    const waiting = users.values()
    const replayRest = async () => {
      for (const user of waiting)
        await replay(user, ranker, contextNames, collected, progress.advance)
    }
    await Promise.all(
      Array.from({ length: USERS_PER_CORE * availableParallelism() }, () => replayRest()),
    )
    const tasks = ranker.model.tasks.map(({ name }, t) => ({
      task: name,
      ...taskQuality(
        Float64Array.from(collected[t]?.logits ?? []),
        Uint8Array.from(collected[t]?.labels ?? []),
      ),
    }))
    process.stdout.write(values.json ? `${JSON.stringify({ tasks })}\n` : table(tasks))
    return 0
  } finally {
    await ranker.close()
  }
}

/** Ranks each test-day exposure of a user alone, with everything before it as history. */
async function replay(
  { id, features, events }: KuaiRandUser,
  ranker: Ranker,
  contextNames: readonly string[],
  collected: readonly Collected[],
  advance: () => void,
): Promise<void> {
  const context = Object.fromEntries(
    Object.entries(features).filter(([name]) => contextNames.includes(name)),
  )
  for (const [i, target] of events.entries()) {
    if (!target.isTest) continue
    const { item, features: shown } = target
    const result = await ranker.rank(
      {
        user: { id, features: context },
        histories: [events.slice(0, i)],
        series: {},
        candidates: [{ item, ...(shown === undefined ? {} : { features: shown }) }],
        time: target.time,
      },
      {},
    )
    ranker.model.tasks.forEach(({ name }, t) => {
      collected[t]?.logits.push(result.items[0]?.logits[t] ?? Number.NaN)
      collected[t]?.labels.push(target.actions.includes(name) ? 1 : 0)
    })
    advance()
  }
}

function table(tasks: readonly ({ readonly task: string } & TaskQuality)[]): string {
  const line = (cells: readonly string[]) => `${cells.map((cell) => cell.padStart(10)).join('')}\n`
  const body = tasks.map(({ task, auc, ne, logLoss, rows }) =>
    line([task, auc.toFixed(4), ne.toFixed(4), logLoss.toFixed(4), String(rows)]),
  )
  return line(['task', 'AUC', 'NE', 'log loss', 'rows']) + body.join('')
}
