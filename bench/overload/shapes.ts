import { writeFileSync } from 'node:fs'
import type { RankInput } from '../../model/request.js'
import { DEMO_BUNDLE, ensureDemoBundle } from '../../server/commands/demo.js'
import { requestFiles } from '../http.js'
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
}

const USERS = 60
const EVENTS = { least: 100, most: 600 }
const CANDIDATES = { least: 128, most: 512 }

/** The demo model, where HTTP costs as much as the model, or the paper's, where nothing else counts. */
export const SHAPES = {
  demo(): Shape {
    ensureDemoBundle(DEMO_BUNDLE)
    return {
      what: 'Demo model and its 200 requests',
      bundle: DEMO_BUNDLE,
      files: requestFiles('demo/kuairand/requests'),
      deadlineMs: 250,
    }
  },
  paper(folder: string): Shape {
    const bundle = exportPaperShape(`${folder}/bundle`).folder
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
}
