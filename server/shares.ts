/** One stream of work among others, each with a right to its share of what serves them. */
type Flow = {
  weight: number
  /** Pieces that wait, and their work. */
  waiting: number
  workMs: number
  /** Virtual time at which what it was last served ends. */
  end: number
}

/** Who of several is served next; names nothing that is no longer owed or owing anything. */
export type Shares<N extends string> = {
  arrive(name: N, weight: number, workMs: number): void
  /** Who is next; `headMs` is the first piece of each that has any. */
  next(headMs: (name: N) => number): N | undefined
  serve(name: N, workMs: number): void
  /** A piece that waited is not to be served any more. */
  leave(name: N, workMs: number): void
  /**
   * Work that comes before a new piece of `workMs` with `ownMs` of its own before it, where nobody else
   * arrives.
   */
  aheadMs(name: N, weight: number, workMs: number, ownMs: number): number
  workMs(name: N): number
  waiting(name: N): number
}

/**
 * Self-clocked fair queueing: each piece of work gets a virtual end, its length over its flow's weight
 * after the end of the one before it (or after now, for a flow that had nothing), and the earliest is
 * next. Flows that always have work are served in proportion to their weights; one that asks for less
 * than its share waits for no backlog of the others.
 * @see Golestani, "A Self-Clocked Fair Queueing Scheme for Broadband Applications", INFOCOM 1994
 */
export function createShares<N extends string>(): Shares<N> {
  const flows = new Map<N, Flow>()
  /** Virtual now: the end of what was served last. */
  let clock = 0
  let waiting = 0

  const taken = (name: N, workMs: number): Flow => {
    const flow = flows.get(name)
    if (flow === undefined || flow.waiting === 0) throw new Error(`${name} has nothing waiting`)
    flow.waiting--
    // Sums of fractions: nothing is left of an empty flow.
    flow.workMs = flow.waiting === 0 ? 0 : Math.max(0, flow.workMs - workMs)
    waiting--
    return flow
  }
  /** Nobody was kept waiting: all begin anew, and who left is forgotten. */
  const settle = () => {
    if (waiting > 0) return
    flows.clear()
    clock = 0
  }

  return {
    arrive(name, weight, workMs) {
      const flow = flows.get(name) ?? { weight, waiting: 0, workMs: 0, end: clock }
      flows.set(name, flow)
      if (flow.waiting === 0) flow.end = Math.max(flow.end, clock)
      flow.weight = weight
      flow.waiting++
      flow.workMs += workMs
      waiting++
    },
    next(headMs) {
      let first: N | undefined
      let earliest = Number.POSITIVE_INFINITY
      for (const [name, flow] of flows) {
        if (flow.waiting === 0) continue
        const end = flow.end + headMs(name) / flow.weight
        if (end >= earliest) continue
        earliest = end
        first = name
      }
      return first
    },
    serve(name, workMs) {
      const flow = taken(name, workMs)
      flow.end += workMs / flow.weight
      clock = flow.end
      settle()
    },
    leave(name, workMs) {
      taken(name, workMs)
      settle()
    },
    aheadMs(name, weight, workMs, ownMs) {
      const owed = Math.max(0, (flows.get(name)?.end ?? 0) - clock)
      const end = owed + (ownMs + workMs) / weight
      let sum = ownMs
      for (const [other, flow] of flows) {
        if (other === name || flow.waiting === 0) continue
        const before = (end - Math.max(0, flow.end - clock)) * flow.weight
        sum += Math.min(flow.workMs, Math.max(0, before))
      }
      return sum
    },
    workMs: (name) => flows.get(name)?.workMs ?? 0,
    waiting: (name) => flows.get(name)?.waiting ?? 0,
  }
}
