// Users whose histories grow, an open loop of their requests, and every answer held to one without a cache.
import { Agent } from 'node:http'
import type { RankResult } from '../falcon/types.js'
import { createRandom } from '../model/random.js'
import type { RankInput } from '../model/request.js'
import { postRank } from './load.js'
import { randomRequest } from './workload.js'

const SIZE = { users: 6, leastEvents: 380, mostEvents: 430 }
const CANDIDATES = 20
/** Logits: what fp16 K/V may differ by. */
export const LIMIT = 1e-2

export type Sample = {
  readonly user: string
  readonly dueMs: number
  readonly ms: number
  /** Where all of the history's K/V, or its beginning, came from: memory or Redis; none computed it. */
  readonly tier: 1 | 2 | undefined
  readonly prefilledTokens: number
}

export type Outcome = {
  readonly samples: readonly Sample[]
  readonly failed: number
  readonly wrong: number
  readonly largestDifference: number
}

export type Traffic = ReturnType<typeof createTraffic>

/** `rank` is the oracle. */
export function createTraffic(
  rank: (input: RankInput) => Promise<RankResult>,
  seed: number,
  size: Partial<typeof SIZE> = {},
) {
  const { users: count, leastEvents, mostEvents } = { ...SIZE, ...size }
  const random = createRandom(seed)
  const users = Array.from({ length: count }, (_, u) => ({
    whole: randomRequest(`u${u}`, mostEvents, CANDIDATES, u + 1),
    events: leastEvents + Math.floor(random() * (mostEvents - leastEvents)),
  }))
  let answers = 0
  const known = new Map<string, Promise<Map<string, readonly number[]>>>()
  const inputOf = ({ whole, events }: (typeof users)[number]): RankInput => {
    const history = whole.histories[0]?.slice(0, events) ?? []
    return { ...whole, histories: [history], time: (history.at(-1)?.time ?? 0) + 60 }
  }
  const expected = (input: RankInput) => {
    const name = `${input.user.id} ${input.histories[0]?.length}`
    const logits =
      known.get(name) ??
      rank(input).then(({ items }) => new Map(items.map((item) => [item.item, item.logits])))
    known.set(name, logits)
    return logits
  }
  /** Everybody's request as it is now; at the end of the events a user starts again. */
  const next = (): RankInput => {
    const user = users[Math.floor(random() * count)] ?? users[0]
    if (user === undefined) throw new Error('no users')
    if (random() < 0.3) user.events++
    if (user.events > mostEvents) user.events = leastEvents
    return inputOf(user)
  }

  return {
    /** Computes all answers that can be asked for, so that the oracle does not run beside the load. */
    async prepare(): Promise<void> {
      for (const { whole } of users) {
        for (let events = leastEvents; events <= mostEvents; events++) {
          await expected(inputOf({ whole, events }))
        }
      }
    },
    /** One request now, compared like all. @throws when it fails or is wrong */
    async one(port: number): Promise<void> {
      const outcome = collector()
      await outcome.ask(port, next(), expected, performance.now())
      const { failed, wrong } = outcome.end()
      if (failed + wrong > 0) throw new Error('a request failed, or its answer was wrong')
    },
    /** Each user's newest request to each port once. */
    async visit(ports: readonly number[]) {
      const outcome = collector()
      for (const user of users) {
        for (const port of ports)
          await outcome.ask(port, inputOf(user), expected, performance.now())
      }
      return outcome.end()
    },
    /** Answers to the open loops up to now. */
    answers: () => answers,
    /**
     * Poisson arrivals, by turns at the ports, until `isOver` is true of the milliseconds since the start;
     * latency counts from when a request was due. An outcome per port.
     */
    async openLoop(
      ports: readonly number[],
      perSecond: number,
      isOver: (ms: number) => boolean,
    ): Promise<readonly Outcome[]> {
      const outcomes = ports.map(collector)
      const pending: Promise<void>[] = []
      const start = performance.now()
      let due = 0
      for (let i = 0; !isOver(due); i++) {
        due += (-Math.log(1 - random()) / perSecond) * 1000
        const wait = start + due - performance.now()
        if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait))
        const turn = i % ports.length
        const asked = outcomes[turn]?.ask(ports[turn] ?? 0, next(), expected, start + due, start)
        if (asked !== undefined) pending.push(asked.then(() => void answers++))
      }
      await Promise.all(pending)
      return outcomes.map((outcome) => outcome.end())
    },
  }
}

/** Several outcomes as one. */
export function merged(outcomes: readonly Outcome[]): Outcome {
  const sum = (of: (outcome: Outcome) => number) => outcomes.reduce((all, one) => all + of(one), 0)
  return {
    samples: outcomes.flatMap(({ samples }) => samples),
    failed: sum(({ failed }) => failed),
    wrong: sum(({ wrong }) => wrong),
    largestDifference: Math.max(0, ...outcomes.map((one) => one.largestDifference)),
  }
}

function collector() {
  const agent = new Agent({ keepAlive: true })
  const samples: Sample[] = []
  let failed = 0
  let wrong = 0
  let largestDifference = 0
  return {
    async ask(
      port: number,
      input: RankInput,
      expected: (input: RankInput) => Promise<Map<string, readonly number[]>>,
      dueAt: number,
      start = dueAt,
    ): Promise<void> {
      const { histories, series: _, ...rest } = input
      const body = JSON.stringify({ ...rest, history: histories[0], explain: true })
      const parts: Buffer[] = []
      const status = await postRank(agent, port, body, {
        // Load balancers choose the replica by it.
        headers: { 'x-user-id': input.user.id },
        onData: (part) => parts.push(part),
      }).catch(() => 0)
      const ms = performance.now() - dueAt
      if (status !== 200) {
        failed++
        return
      }
      const { items, kv }: RankResult = JSON.parse(Buffer.concat(parts).toString())
      samples.push({
        user: input.user.id,
        dueMs: dueAt - start,
        ms,
        tier: kv.tier,
        prefilledTokens: kv.prefilledTokens,
      })
      const right = await expected(input)
      const differences = items.flatMap(({ item, logits }) =>
        logits.map((logit, t) => Math.abs(logit - (right.get(item)?.[t] ?? Number.NaN))),
      )
      const difference = Math.max(...differences)
      if (!(difference <= LIMIT) || items.length !== input.candidates.length) wrong++
      largestDifference = Math.max(largestDifference, difference)
    },
    end(): Outcome {
      agent.destroy()
      return { samples, failed, wrong, largestDifference }
    },
  }
}
