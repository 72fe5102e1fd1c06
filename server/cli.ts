#!/usr/bin/env node
import { type LoadEvent, loadRanker } from '../falcon/load.js'
import type { Measurements } from '../falcon/measured.js'
import { shareStores } from '../falcon/shared-stores.js'
import { redisTarget } from '../falcon/stores.js'
import { RankError } from '../model/errors.js'
import { ensureDemoBundle } from './commands/demo.js'
import { EVAL_HELP, evalCommand } from './commands/eval.js'
import { EVAL_RETRIEVAL_HELP, evalRetrievalCommand } from './commands/eval-retrieval.js'
import { EXPORT_HELP, exportCommand } from './commands/export.js'
import { GOLDEN_HELP, goldenCommand } from './commands/golden.js'
import { KEY_HELP, keyCommand } from './commands/key.js'
import { RANK_HELP, rankCommand } from './commands/rank.js'
import { VERIFY_HELP, verifyCommand } from './commands/verify.js'
import { configHelp, parseServerConfig } from './config.js'
import { createLogger } from './log.js'
import { peekBundle } from './models/peek.js'
import { serve } from './serve.js'

const SERVE_HELP = `peregrine serve [--bundle DIR] [flags]
    serves a bundle over HTTP, the demo model's by default; flags, or the variables in brackets:
${configHelp()}`

const HELP = [
  SERVE_HELP,
  EXPORT_HELP,
  VERIFY_HELP,
  GOLDEN_HELP,
  RANK_HELP,
  EVAL_HELP,
  EVAL_RETRIEVAL_HELP,
  KEY_HELP,
].join('\n\n')

/** Events while loading and serving that somebody should look at. */
const WARNINGS = new Set<LoadEvent['kind']>([
  'crash',
  'deviceLost',
  'notRestarted',
  'provider',
  'engineFallback',
  'kernelsRefused',
  'leakedHandle',
  'redisLost',
  'redisThreadCrash',
])

type Command = { readonly help: string; run(args: string[]): number | Promise<number> }

const COMMANDS = new Map<string, Command>([
  ['serve', { help: SERVE_HELP, run: serveCommand }],
  ['export', { help: EXPORT_HELP, run: exportCommand }],
  ['verify', { help: VERIFY_HELP, run: verifyCommand }],
  ['golden', { help: GOLDEN_HELP, run: goldenCommand }],
  ['rank', { help: RANK_HELP, run: rankCommand }],
  ['eval', { help: EVAL_HELP, run: evalCommand }],
  ['eval-retrieval', { help: EVAL_RETRIEVAL_HELP, run: evalRetrievalCommand }],
  ['key', { help: KEY_HELP, run: keyCommand }],
])

async function serveCommand(args: string[]): Promise<number> {
  const { config, sources } = parseServerConfig(args, process.env)
  const log = createLogger(config.logLevel)
  const shared = shareStores(redisTarget(config), config, (event) => logEvent(log, event))
  const measurements: Measurements = new Map()
  const { stopped } = await serve({
    ...{ config, sources, log, closeStores: shared.close },
    peek(folder) {
      ensureDemoBundle(folder)
      return peekBundle(folder)
    },
    loadRanker(_, __, { folder, isBackground, onWarming }) {
      return loadRanker({
        ...config,
        ...{ bundle: folder, background: isBackground, shared, measurements },
        maxKvBytes: config.kvBytes,
        onEvent(event) {
          if (event.kind === 'engine') onWarming()
          logEvent(log, event)
        },
      })
    },
  })
  await stopped
  return Number(process.exitCode ?? 0)
}

function logEvent(log: ReturnType<typeof createLogger>, event: LoadEvent): void {
  const part = event.kind.startsWith('redis') ? 'store' : 'engine'
  log[WARNINGS.has(event.kind) ? 'warn' : 'info'](event, `${part}: ${event.kind}`)
}

async function main([name = '', ...args]: string[]): Promise<number> {
  const command = COMMANDS.get(name)
  if (command === undefined || args.includes('--help')) {
    const wantsHelp = name === '--help' || name === 'help' || args.includes('--help')
    const text = `${command?.help ?? HELP}\n`
    if (wantsHelp) process.stdout.write(text)
    else process.stderr.write(`unknown command ${JSON.stringify(name)}\n\n${text}`)
    return wantsHelp ? 0 : 2
  }
  return command.run(args)
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  // A RankError is the user's to act on; anything else is ours, with its stack.
  const isUsage =
    error instanceof Error && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS')
  const text =
    error instanceof RankError
      ? `${error.code}: ${error.message}`
      : isUsage
        ? error.message
        : undefined
  process.stderr.write(`${text ?? (error instanceof Error ? error.stack : String(error))}\n`)
  process.exitCode = 1
}
