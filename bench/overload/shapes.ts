import { statSync, writeFileSync } from 'node:fs'
import { RankError } from '../../model/errors.js'
import { openBundle } from '../../model/manifest.js'
import type { RankInput } from '../../model/request.js'
import { DEMO_BUNDLE, ensureDemoBundle } from '../../server/commands/demo.js'
import { requestFiles } from '../http.js'
import { count } from '../markdown.js'
import { exportPaperShape, randomRequest, rankBody } from '../workload.js'

/** What is served under overload, and asked for. */
export type Shape = {
  /** Words for the page. */
  readonly what: string
  readonly bundle: string
  /** Files with a request each. */
  readonly files: readonly string[]
  /** Of every request. */
  readonly deadlineMs: number
  /** Before anything is measured. */
  readonly prepare?: (port: number) => Promise<void>
}

const USERS = 60
const EVENTS = { least: 100, most: 600 }
const CANDIDATES = { least: 128, most: 512 }

/** What fills the paper's shape: as much history as it takes, and what HSTU's paper ranks at once. */
const FULL = { users: 32, events: 1023, candidates: 1024, deadlineMs: 250 }

/** The demo model, where HTTP costs as much as the model, or the paper's, where nothing else counts. `full` and `stored` are for GPUs. */
export const SHAPES = {
  demo(_folder: string, given?: string): Shape {
    if (given !== undefined) {
      throw new Error(`--bundle ${given} goes with another --shape: demo serves the demo model`)
    }
    ensureDemoBundle(DEMO_BUNDLE)
    return {
      what: 'Demo model and its 200 requests',
      bundle: DEMO_BUNDLE,
      files: requestFiles('demo/kuairand/requests'),
      deadlineMs: 250,
    }
  },
  paper(folder: string, given?: string): Shape {
    const bundle = given ?? exportPaperShape(`${folder}/bundle`).folder
    const between = ({ least, most }: typeof EVENTS, i: number) =>
      least + Math.round(((most - least) * ((i * 7) % USERS)) / USERS)
    const files = Array.from({ length: USERS }, (_, i) => {
      const input: RankInput = randomRequest(
        ...([`user-${i}`, between(EVENTS, i), between(CANDIDATES, i + 3), i] as const),
      )
      const file = `${folder}/request-${i}.json`
      writeFileSync(file, rankBody(input))
      return file
    })
    return {
      what: `The paper's shape with random weights: ${USERS} users with ${EVENTS.least} to ${EVENTS.most} events, ${CANDIDATES.least} to ${CANDIDATES.most} candidates each`,
      ...{ bundle, files, deadlineMs: 500 },
    }
  },
  full(folder: string, given?: string): Shape {
    return fullShape(folder, given, 'in the request', (input) => input)
  },
  stored(folder: string, given?: string): Shape {
    const inputs: RankInput[] = []
    const shape = fullShape(folder, given, 'stored beforehand', (input) => {
      inputs.push(input)
      return { ...input, histories: [] }
    })
    return { ...shape, prepare: (port) => store(port, inputs) }
  },
}

/** @throws {RankError} INVALID_REQUEST for any other name */
export function shapeName(given: string): keyof typeof SHAPES {
  const [name] = (['demo', 'paper', 'full', 'stored'] as const).filter((each) => each === given)
  if (name !== undefined) return name
  throw new RankError(
    'INVALID_REQUEST',
    `--shape must be demo, paper, full or stored, got ${given}`,
  )
}

function fullShape(
  folder: string,
  given: string | undefined,
  where: string,
  asked: (input: RankInput) => RankInput,
): Shape {
  const { users, events, candidates, deadlineMs } = FULL
  const bundle = given ?? exportPaperShape(`${folder}/bundle`).folder
  const files = Array.from({ length: users }, (_, i) => {
    const file = `${folder}/request-${i}.json`
    writeFileSync(file, rankBody(asked(randomRequest(`user-${i}`, events, candidates, i))))
    return file
  })
  const bytes = Math.max(...files.map((file) => statSync(file).size))
  return {
    what: `The paper's shape with random weights (${openBundle(bundle).manifest.precision}): ${users} users with ${events} events, ${where}, ${candidates} candidates each; bodies of up to ${count(bytes)} bytes`,
    ...{ bundle, files, deadlineMs },
  }
}

async function store(port: number, inputs: readonly RankInput[]): Promise<void> {
  for (const { user, histories } of inputs) {
    const url = `http://127.0.0.1:${port}/v1/users/${user.id}/events`
    const headers = { 'content-type': 'application/json' }
    const body = JSON.stringify({ events: histories[0] })
    const { status } = await fetch(url, { method: 'POST', headers, body })
    if (status !== 200) throw new Error(`expected 200 for the events of ${user.id}, got ${status}`)
  }
}
