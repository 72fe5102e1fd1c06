import type { FastifyRequest } from 'fastify'
import type { Ranker } from '../falcon/types.js'
import type { Ask, Door, Turn } from './door.js'
import type { ModelSource } from './models/source.js'
import type { ModelLease } from './models/version.js'

/** What a request's work waits for: a model, and its turn. */
export type TurnParts = { readonly door: Door; readonly models: ModelSource }

export type Wanted = {
  /** As the request names it; undefined = the default. */
  readonly model: string | undefined
  readonly userId: string
  /** Aborted when nobody waits for it any more. */
  readonly signal: AbortSignal
}

/**
 * Does one piece of work of a request that was opened: with the model that it wants, which stays loaded
 * until the work is done, when it is its turn.
 * @param ask - what the door is asked for it; throws what can be said against it before any work
 * @throws {RankError} MODEL_NOT_FOUND, NOT_READY, OVERLOADED, and what `ask` and `work` throw
 */
export async function inTurn<T>(
  request: FastifyRequest,
  { door, models }: TurnParts,
  { model: name, userId, signal }: Wanted,
  ask: (ranker: Ranker) => Omit<Ask, 'signal'>,
  work: (model: ModelLease, turn: Turn & { readonly signal: AbortSignal }) => Promise<T>,
): Promise<T> {
  const model = models.lease(name, userId)
  try {
    const asked = { ...ask(model.ranker), signal }
    return await door.admit(request, [asked])(asked, (turn) => work(model, { ...turn, signal }))
  } finally {
    model.done()
  }
}
