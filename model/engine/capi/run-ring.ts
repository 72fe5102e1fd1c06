/** A power of two: places follow from counts that wrap around. */
const CAPACITY = 256
/** Of 8 bytes, per record. */
const WORDS = 8
const POSTED = 0
const TAKEN = 1
const DONE = 2
/** The counts, on a cache line apart from the records. */
const HEADER_BYTES = 64

/** `WORDS` of them; what they mean is for those who post and take. */
export type Record = readonly bigint[]
/** `id`: how many were posted before it, as an Int32 that wraps around. */
export type Taken = { readonly id: number; readonly record: Record }

export function ringMemory(): SharedArrayBuffer {
  return new SharedArrayBuffer(HEADER_BYTES + CAPACITY * WORDS * 8)
}

/** Records that one thread posts and any number of others take, each one of them once, in order. */
export function openRing(memory: SharedArrayBuffer) {
  const counts = new Int32Array(memory, 0, 3)
  const words = new BigUint64Array(memory, HEADER_BYTES)
  const placeOf = (id: number) => (id & (CAPACITY - 1)) * WORDS
  return {
    hasRoom(): boolean {
      const left = Atomics.load(counts, POSTED) - Atomics.load(counts, TAKEN)
      return (left | 0) < CAPACITY
    },
    /** Wakes a thread that waits in `take`. For one thread, while there is room. */
    post(record: Record): number {
      const id = Atomics.load(counts, POSTED)
      words.set(record, placeOf(id))
      Atomics.store(counts, POSTED, (id + 1) | 0)
      Atomics.notify(counts, POSTED, 1)
      return id
    },
    /** The next record; blocks the thread until there is one. Whoever took it says when it is `done`. */
    take(): Taken {
      for (;;) {
        const id = Atomics.load(counts, TAKEN)
        const posted = Atomics.load(counts, POSTED)
        if (id === posted) {
          Atomics.wait(counts, POSTED, posted)
          continue
        }
        // Nobody writes to the place before it is taken: what was read is whole if this thread takes it.
        const record = [...words.subarray(placeOf(id), placeOf(id) + WORDS)]
        if (Atomics.compareExchange(counts, TAKEN, id, (id + 1) | 0) === id) return { id, record }
      }
    },
    done(): void {
      Atomics.add(counts, DONE, 1)
      Atomics.notify(counts, DONE)
    },
    /** Drops what nobody took, and blocks the thread until all that was taken is done. For who posts. */
    drain(): void {
      const posted = Atomics.load(counts, POSTED)
      let taken = Atomics.load(counts, TAKEN)
      for (;;) {
        const found = Atomics.compareExchange(counts, TAKEN, taken, posted)
        if (found === taken) break
        taken = found
      }
      for (;;) {
        const done = Atomics.load(counts, DONE)
        if (done === taken) return
        Atomics.wait(counts, DONE, done)
      }
    },
  }
}
