import { setMaxListeners } from 'node:events'
import type { FastifyReply } from 'fastify'
import type { Ranker } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import type { Admission } from './admission.js'

export type Door = {
  /** The ranker, when it is loaded. @throws {RankError} NOT_READY with Retry-After */
  loaded(reply: FastifyReply): Ranker
  /** The ranker, when it has room for `count` more rankings. @throws {RankError} NOT_READY, OVERLOADED with Retry-After */
  open(reply: FastifyReply, count: number): Ranker
  /** Does `work` as `count` rankings in flight. @throws {RankError} NOT_READY, OVERLOADED with Retry-After */
  admit<T>(reply: FastifyReply, count: number, work: (ranker: Ranker) => Promise<T>): Promise<T>
}

const LOADING_RETRY_SEC = 2

/** Where requests are refused before any work. */
export function createDoor(ranker: () => Ranker | undefined, admission: Admission): Door {
  const loaded = (reply: FastifyReply) => {
    const ready = ranker()
    if (ready !== undefined) return ready
    reply.header('retry-after', LOADING_RETRY_SEC)
    throw new RankError('NOT_READY', 'the model is still loading; see /readyz')
  }
  const open = (reply: FastifyReply, count: number) => {
    const ready = loaded(reply)
    if (admission.hasRoom(count)) return ready
    reply.header('retry-after', admission.retryAfterSec(ready.stats().engine.workers))
    const { maxInFlight, inFlight } = admission
    const message = `at most ${maxInFlight} rankings run at once, got ${count} more to ${inFlight()}`
    throw new RankError('OVERLOADED', message)
  }
  return {
    loaded,
    open,
    async admit(reply, count, work) {
      const ready = open(reply, count)
      const startMs = performance.now()
      admission.enter(count)
      try {
        return await work(ready)
      } finally {
        admission.leave(count, performance.now() - startMs)
      }
    },
  }
}

/** Aborted when the client is gone before its reply is. */
export function clientOf({ raw }: FastifyReply): AbortSignal {
  const controller = new AbortController()
  // One listener for each ranking of a batch.
  setMaxListeners(0, controller.signal)
  const onClose = () => {
    if (!raw.writableFinished) controller.abort()
  }
  if (raw.closed) onClose()
  else raw.once('close', onClose)
  return controller.signal
}
