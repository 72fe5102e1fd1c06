import type { Bundle } from '../../manifest.js'
import type { WarmUp } from '../engine.js'
import { openCudaLane } from './cuda-lane.js'
import { copyOf } from './kernels.js'
import { createLane, type Lane } from './lane.js'
import { hostLane } from './lane-device.js'
import type { Opened } from './open.js'
import type { Pointer } from './ort.js'
import { createSessions } from './sessions.js'

/** Lengths of the captured shapes: each is at most this much of the next. */
const STEP = Math.SQRT2
/** Shorter lengths take as long. */
const SHORTEST_HISTORY = 64
const FEWEST_CANDIDATES = 32

export type Lanes = {
  /** A lane that has nothing to do: runs side by side get more out of a busy GPU than a queue. */
  idle(): Lane | undefined
  /** Captured graphs, all lanes together. */
  readonly shapes: number
  /** Jobs of all lanes. */
  pending(): number
  close(): Promise<void>
}

/** Lanes that have captured every shape up to those given; each has sessions of its own. */
export async function createLanes(
  opened: Opened,
  bundle: Bundle,
  { historyTokens, candidates }: WarmUp,
  count: number,
): Promise<Lanes> {
  const { ort, source, cuda, memory, blocks, store, kvPrecision } = opened
  const { config, precision } = bundle.manifest
  const lanes: Lane[] = []
  let shapes = 0
  const releases: (() => void | Promise<void>)[] = []
  const close = async () => {
    await Promise.all(lanes.map((lane) => lane.close()))
    for (const release of releases.splice(0).reverse()) await release()
  }
  // K and V of different widths do not lie in one grid; the float32 graphs are not made to be replayed
  // (export/functions.ts, withBias).
  const isMade = cuda === undefined || precision === 'fp16'
  if (config.dqk !== config.dv || !isMade) {
    return { shapes: 0, idle: () => undefined, pending: () => 0, close }
  }
  try {
    const copyIn = source.kernels === undefined ? undefined : copyOf(source.kernels)
    for (let i = 0; i < count; i++) {
      const graphs = cuda && openCudaLane(cuda.runtime, ort.runNow, { copyIn })
      const device = graphs ?? hostLane(ort)
      releases.push(device.close)
      const { sessions, release } = await createSessions(source, ['score', 'rank'], {
        intraOpThreads: 1,
        spin: false,
        ...(cuda &&
          graphs && { addProvider: (to: Pointer) => cuda.addStreamProvider(to, graphs.stream) }),
      })
      releases.push(release)
      const lane = await createLane({
        ...{ ort, memory, store, blocks, device, sessions, manifest: bundle.manifest, kvPrecision },
        historyTokens: lengths(SHORTEST_HISTORY, Math.max(...historyTokens)),
        candidates: lengths(FEWEST_CANDIDATES, Math.max(...candidates)),
      })
      lanes.push(lane)
      await lane.capture(() => {
        shapes++
      })
    }
    return {
      shapes,
      idle: () => lanes.find((lane) => lane.isIdle()),
      pending: () => lanes.filter((lane) => lane.isBusy()).length,
      close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

/** Multiples of `least` up to `most`, each about STEP of the one before, ascending. */
export function lengths(least: number, most: number): number[] {
  const found = [most]
  for (let length = most / STEP; length > least; length /= STEP) {
    // Every second step is a half, were it not for the last digits of a square root.
    const rounded = Math.ceil(length / least - 1e-6) * least
    if (rounded < (found.at(-1) ?? 0)) found.push(rounded)
  }
  if (least < (found.at(-1) ?? 0)) found.push(least)
  return found.reverse()
}
