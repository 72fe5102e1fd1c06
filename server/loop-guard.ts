import { performance } from 'node:perf_hooks'
import { type Claim, type Priority, WEIGHTS } from './fair-queue.js'

/**
 * What a turn of the event loop may last before it lets in no more: a request that comes later in it has
 * waited in its socket for as long, and whoever is refused learns it that late.
 */
export const TURN_MS = 3
/** So many are let in all the same: large ones take longer, and wait for no more than these. */
const LEAST_PER_TURN = 4
/**
 * Behind is a loop that has not been idle for so long, over so many turns, the last of them so long: a
 * pause is caught up with, and a busy loop is none that cannot cope.
 */
export const BEHIND_MS = 100
const BEHIND_TURNS = 4
const BEHIND_TURN_MS = 25
/** Idle for no more than this part of the time is busy: to ask the system what there is takes some. */
const IDLE_SHARE = 0.05
/** What was let in counts half after so long, and its keys are forgotten where they ask for no more. */
const HALF_LIFE_MS = 500
/** Below this part of its share nobody is refused: whose demand is small has all of it. */
const SHARE = 0.9

/** Protects the event loop as the queue protects the engine: parsing, too, is work, and shared. */
export type LoopGuard = {
  /**
   * Whether a request whose headers were read just now has to go: the loop is behind, its turn lasts, and
   * those like it have had their share of what was let in.
   */
  refuses(claim: Claim): boolean
  /** Its body may come. */
  passed(): void
  /** Its body has come: only that counts for its share, whatever its headers promised. */
  read(claim: Claim): void
  /** The loop is behind. */
  isBehind(): boolean
}

export type LoopGuardOptions = {
  /** Milliseconds, monotonic. */
  readonly now: () => number
  /** Milliseconds that the loop had nothing to do, since it began. */
  readonly idleMs?: () => number
  /** Calls back when all sockets that were readable have been read from. */
  readonly afterTurn?: (callback: () => void) => void
}

/** All requests of one key and priority. */
type Flow = {
  readonly priority: Priority
  share: number
  /** Let in lately; the older, the less it counts. */
  workMs: number
  isSeen: boolean
}

/** How long the loop had been idle by then, in milliseconds. */
type Reading = { readonly at: number; readonly idle: number }

function isBusy(from: Reading, to: Reading): boolean {
  return to.idle - from.idle <= IDLE_SHARE * (to.at - from.at)
}

export function createLoopGuard(options: LoopGuardOptions): LoopGuard {
  const {
    now,
    idleMs = () => performance.nodeTiming.idleTime,
    afterTurn = (callback) => void setImmediate(callback),
  } = options
  const flows = new Map<string, Flow>()
  let totalMs = 0
  let fadedAt = now()
  /** When the loop began to read sockets; undefined between turns with requests. */
  let turnAt: number | undefined
  let turnEndedAt = 0
  let passedInTurn = 0
  let turnBefore: Reading = { at: 0, idle: 0 }
  /** Since the loop was busy from turn to turn. */
  let busySince = 0
  let busyTurns = 0
  let isBehind = false
  /** When it was last looked at whether it still is. */
  let lookedAt: Reading = { at: now(), idle: idleMs() }

  const beginTurn = (at: number): number => {
    const reading = { at, idle: idleMs() }
    if (isBusy(turnBefore, reading)) {
      busyTurns++
      // What ran in between, such as answers, kept the sockets waiting too.
      turnAt = turnEndedAt
    } else {
      busySince = at
      busyTurns = 0
      turnAt = at
    }
    turnBefore = reading
    if (at - lookedAt.at >= BEHIND_MS) {
      if (!isBusy(lookedAt, reading)) isBehind = false
      lookedAt = reading
    }
    passedInTurn = 0
    afterTurn(() => {
      turnAt = undefined
      turnEndedAt = now()
    })
    return turnAt
  }
  const fade = (at: number): void => {
    if (at - fadedAt < HALF_LIFE_MS) return
    const left = 2 ** -Math.floor((at - fadedAt) / HALF_LIFE_MS)
    fadedAt = at
    totalMs = 0
    for (const [name, flow] of flows) {
      if (!flow.isSeen) flows.delete(name)
      flow.isSeen = false
      flow.workMs *= left
      totalMs += flows.has(name) ? flow.workMs : 0
    }
  }
  const flowOf = ({ key, priority, share }: Claim): Flow => {
    const name = `${priority} ${key}`
    const flow = flows.get(name) ?? { priority, share, workMs: 0, isSeen: true }
    flows.set(name, flow)
    flow.isSeen = true
    flow.share = share
    return flow
  }
  /** Of all that is let in: its priority's part of it, and among its keys. */
  const guaranteed = (own: Flow): number => {
    let ofPriority = 0
    const seen = new Set<Priority>()
    for (const { priority, share } of flows.values()) {
      seen.add(priority)
      if (priority === own.priority) ofPriority += share
    }
    let weights = 0
    for (const priority of seen) weights += WEIGHTS[priority]
    return (WEIGHTS[own.priority] / weights) * (own.share / ofPriority)
  }

  return {
    refuses(claim) {
      const at = now()
      fade(at)
      const began = turnAt ?? beginTurn(at)
      const flow = flowOf(claim)
      const lastsMs = at - began
      if (lastsMs > BEHIND_TURN_MS && at - busySince > BEHIND_MS && busyTurns >= BEHIND_TURNS) {
        isBehind = true
      }
      if (!isBehind || lastsMs <= TURN_MS || passedInTurn < LEAST_PER_TURN) return false
      return flow.workMs >= SHARE * guaranteed(flow) * totalMs
    },
    passed() {
      passedInTurn++
    },
    read(claim) {
      flowOf(claim).workMs += claim.workMs
      totalMs += claim.workMs
    },
    isBehind: () => isBehind,
  }
}
