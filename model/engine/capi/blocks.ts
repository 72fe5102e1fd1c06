import { setImmediate } from 'node:timers/promises'
import type { TensorMemory } from './memory.js'
import type { Pointer } from './ort.js'

/** One allocation that holds the K/V of up to `capacity` tokens. */
export type Block = {
  readonly bytes: number
  readonly capacity: number
  /** Seconds of its tokens; always in the process's own memory. */
  readonly times: BigInt64Array
  /** Rows [0, used) are written or being written; only what ends at `used` may grow in place. */
  used: number
  memory: TensorMemory
  address: Pointer
  /** Entries that view it and runs that use it: freed at 0. */
  users: number
  /** Runs that use it now: it stays where it is. */
  runs: number
  /** Order of last uses. */
  lastUse: number
  /** Told when the block moved or went: OrtValues over the old address are no longer valid. */
  readonly onMove: Set<() => void>
}

export type BlocksOptions = {
  /** Where runs need the blocks. */
  readonly home: TensorMemory
  /** Where the least recently used go when `homeBytes` are passed; without it nothing moves. */
  readonly overflow?: TensorMemory
  readonly homeBytes?: number
}

export type BlockStats = {
  readonly homeBytes: number
  readonly overflowBytes: number
  /** Blocks moved out and back since the start. */
  readonly spills: number
  readonly restores: number
}

/** When all are. */
const FREED_PER_TURN = 16

export type Blocks = ReturnType<typeof createBlocks>

/** Allocates blocks under a byte budget of the home memory; what is not in use may be moved out. */
export function createBlocks({ home, overflow, homeBytes: budget = Infinity }: BlocksOptions) {
  const all = new Set<Block>()
  const bytesIn = new Map<TensorMemory, number>()
  let clock = 0
  let spills = 0
  let restores = 0
  let moving: Block | undefined
  /** Moves go one after the other: each sees the budget as the one before left it. */
  let lastMove: Promise<unknown> = Promise.resolve()
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const turn = lastMove.then(work)
    lastMove = turn.catch(() => {})
    return turn
  }

  const count = (memory: TensorMemory, bytes: number) =>
    bytesIn.set(memory, (bytesIn.get(memory) ?? 0) + bytes)

  const free = (block: Block) => {
    all.delete(block)
    count(block.memory, -block.bytes)
    block.memory.free(block.address)
  }

  const move = async (
    block: Block,
    to: TensorMemory,
    allocate: () => Pointer | Promise<Pointer>,
  ) => {
    moving = block
    try {
      const address = await allocate()
      try {
        // Either memory can reach the other: both are the process's or CUDA's.
        await home.copy(address, block.address, block.bytes)
      } catch (error) {
        to.free(address)
        throw error
      }
      const { memory: from, address: old } = block
      count(from, -block.bytes)
      count(to, block.bytes)
      block.memory = to
      block.address = address
      for (const told of block.onMove) told()
      from.free(old)
    } finally {
      moving = undefined
      if (block.users === 0) free(block)
    }
  }

  /** Moves out the least recently used block that no run needs; false where there is none. */
  const spill = async (): Promise<boolean> => {
    const idle = [...all].filter(({ memory, runs }) => memory === home && runs === 0)
    const [first, ...others] = idle
    if (overflow === undefined || first === undefined) return false
    const oldest = others.reduce((a, b) => (b.lastUse < a.lastUse ? b : a), first)
    await move(oldest, overflow, () => overflow.allocate(oldest.bytes))
    spills++
    return true
  }

  /** Memory at home, within the budget where blocks can move out, and within what there is. */
  const allocateAtHome = async (bytes: number): Promise<Pointer> => {
    while ((bytesIn.get(home) ?? 0) + bytes > budget) if (!(await spill())) break
    for (;;) {
      try {
        return await home.allocate(bytes)
      } catch {
        // What is free may lie in pieces.
        if (!(await spill())) return home.allocate(bytes, true)
      }
    }
  }

  return {
    /** The most that stays at home; infinite without a budget. */
    budgetBytes: budget,
    /** A block with one user, in a run: it stays at home until `endRun`. */
    async allocate(capacity: number, bytes: number): Promise<Block> {
      const address = await inTurn(async () => {
        const found = await allocateAtHome(bytes)
        count(home, bytes)
        return found
      })
      const block: Block = {
        bytes,
        capacity,
        times: new BigInt64Array(capacity),
        used: 0,
        memory: home,
        address,
        users: 2,
        runs: 1,
        lastUse: ++clock,
        onMove: new Set(),
      }
      all.add(block)
      return block
    },
    /** Keeps the block at home until `endRun`; brings it back first where it was moved out. */
    async beginRun(block: Block): Promise<void> {
      block.users++
      block.runs++
      block.lastUse = ++clock
      if (block.memory === home && moving !== block) return
      try {
        await inTurn(async () => {
          if (block.memory === home) return
          const address = await allocateAtHome(block.bytes)
          await move(block, home, () => address)
          restores++
        })
      } catch (error) {
        this.endRun(block)
        throw error
      }
    },
    endRun(block: Block): void {
      block.runs--
      this.leave(block)
    },
    /** One user more of a block that is in a run, and one run more. */
    share(block: Block): void {
      block.users += 2
      block.runs++
    },
    leave(block: Block): void {
      block.users--
      if (block.users === 0 && moving !== block) free(block)
    },
    stats: (): BlockStats => ({
      homeBytes: bytesIn.get(home) ?? 0,
      overflowBytes: overflow === undefined ? 0 : (bytesIn.get(overflow) ?? 0),
      spills,
      restores,
    }),
    /** Frees what is left, when no run is under way. */
    async close(): Promise<void> {
      await lastMove
      let freed = 0
      for (const block of all) {
        for (const told of block.onMove) told()
        free(block)
        // Some 0.05 ms each, and there are thousands: traffic has its turn.
        if (++freed % FREED_PER_TURN === 0) await setImmediate()
      }
    },
  }
}
