import { parseArgs } from 'node:util'
import { loadRanker } from '../../falcon/load.js'
import type { Ranker } from '../../falcon/types.js'
import { openBundle } from '../../model/manifest.js'
import { defaultSlack, droppedEvents, roomOf } from '../../model/window.js'
import { KNOBS } from '../knobs.js'
import { DEMO_BUNDLE, ensureDemoBundle } from './demo.js'
import { needFolder } from './export.js'
import { integer, providerFlag } from './flags.js'
import { type KuaiRandUser, readKuaiRand } from './kuairand.js'
import { createProgress } from './progress.js'
import { replayAll } from './replay.js'
import { type TaskQuality, taskQuality } from './score-metrics.js'

export const EVAL_HELP = `peregrine eval --data DIR [--bundle DIR] [--users N] [--max-events N] [--window-slack N] [--provider cpu|cuda] [--kernels auto|off|DIR] [--json]
    replays KuaiRand-Pure's test days (5-8 May 2022) through the ranking pipeline, one request per
    exposure with the earlier exposures as history; prints AUC and NE per task, and how often a full
    window cost a user the K/V
    --users N: only the first N users of the log
    --max-events N: a window shorter than the model's
    --window-slack N: events that it moves at a time, a sixteenth of it by default`

type Collected = { readonly logits: number[]; readonly labels: number[] }

type Window = {
  readonly maxEvents: number
  readonly slack: number
  /** Requests of a user ranked before whose window is full, and those of them that found no K/V. */
  full: number
  rebuilt: number
}

export async function evalCommand(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      data: { type: 'string' },
      bundle: { type: 'string', default: DEMO_BUNDLE },
      users: { type: 'string' },
      'max-events': { type: 'string' },
      'window-slack': { type: 'string' },
      provider: { type: 'string', default: 'cpu' },
      kernels: { type: 'string', default: KNOBS.kernels.fallback },
      json: { type: 'boolean', default: false },
    },
  })
  const data = needFolder(values.data, `eval needs --data\n${EVAL_HELP}`)
  ensureDemoBundle(values.bundle)
  const bundle = needFolder(values.bundle, EVAL_HELP)
  const { config } = openBundle(bundle).manifest
  const contextNames = config.context.map(({ name }) => name)
  const window = openWindow(values['max-events'], values['window-slack'], roomOf(config))
  const provider = providerFlag(values.provider)
  const ranker = await loadRanker({ bundle, provider, kernels: values.kernels })
  try {
    const all = await readKuaiRand(data)
    const users =
      values.users === undefined ? all : all.slice(0, integer('--users', values.users, 1, 1e9))
    const total = users.reduce((sum, { events }) => sum + events.filter((e) => e.isTest).length, 0)
    const progress = createProgress(`eval ${ranker.model.name}`, total)
    const collected = ranker.model.tasks.map((): Collected => ({ logits: [], labels: [] }))
    await replayAll(users, (user) =>
      replay(user, ranker, contextNames, window, collected, progress.advance),
    )
    const tasks = ranker.model.tasks.map(({ name }, t) => ({
      task: name,
      ...taskQuality(
        Float64Array.from(collected[t]?.logits ?? []),
        Uint8Array.from(collected[t]?.labels ?? []),
      ),
    }))
    process.stdout.write(
      values.json
        ? `${JSON.stringify({ tasks, window })}\n`
        : `${table(tasks)}${windowLine(window)}\n`,
    )
    return 0
  } finally {
    await ranker.close()
  }
}

function openWindow(events: string | undefined, slack: string | undefined, room: number): Window {
  const maxEvents = events === undefined ? room : integer('--max-events', events, 1, room)
  return {
    maxEvents,
    slack:
      slack === undefined
        ? defaultSlack(maxEvents)
        : integer('--window-slack', slack, 0, Math.max(0, maxEvents - 1)),
    full: 0,
    rebuilt: 0,
  }
}

/** Ranks each test-day exposure of a user alone, with what the window holds of those before it. */
async function replay(
  { id, features, events }: KuaiRandUser,
  ranker: Ranker,
  contextNames: readonly string[],
  window: Window,
  collected: readonly Collected[],
  advance: () => void,
): Promise<void> {
  const context = Object.fromEntries(
    Object.entries(features).filter(([name]) => contextNames.includes(name)),
  )
  let isKnown = false
  for (const [i, target] of events.entries()) {
    if (!target.isTest) continue
    const dropped = droppedEvents(i, window.maxEvents, window.slack, 0)
    const { item, features: shown } = target
    const result = await ranker.rank(
      {
        user: { id, features: context },
        histories: [events.slice(dropped, i)],
        series: {},
        candidates: [{ item, ...(shown === undefined ? {} : { features: shown }) }],
        time: target.time,
      },
      {},
    )
    if (isKnown && dropped > 0) {
      window.full++
      if (result.kv.reusedTokens === 0) window.rebuilt++
    }
    isKnown = true
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

function windowLine({ maxEvents, slack, full, rebuilt }: Window): string {
  return `${full} requests found their window of ${maxEvents} events full; ${rebuilt} rebuilt its K/V (slack ${slack})`
}
