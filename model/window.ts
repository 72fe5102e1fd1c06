import { show } from './check.js'
import type { HstuConfig } from './config.js'
import { RankError } from './errors.js'

/** The most events that a model's history holds, behind the context tokens. */
export function roomOf({ maxTokens, context, tokensPerEvent = 2 }: HstuConfig): number {
  return Math.floor((maxTokens - context.length) / tokensPerEvent)
}

/**
 * How many of the oldest events do not enter a history that holds `room`. With slack the window
 * starts at a multiple of `slack`: it then moves once per `slack` new events, and what comes in
 * between is appended to the K/V of an unchanged beginning. It holds room - slack + 1 to `room`
 * events, of this request alone: a score must not depend on what was cached before.
 *
 * @param events - of all sources, as posted
 * @param room - the most that are kept
 * @param slack - below `room`; 0 (or 1): only what does not fit goes
 * @param offset - older events that were not posted. Whoever posts the newest `room` or more gets
 * the window of the whole history, and so a start that stays. Fewer start at the same multiples;
 * `slack` or fewer are taken as they are, for nothing might be left of them
 */
export function droppedEvents(events: number, room: number, slack: number, offset: number): number {
  const overflow = Math.max(0, events - room)
  if (slack <= 1 || offset + overflow === 0 || slack >= Math.min(room, events)) return overflow
  return Math.ceil((offset + overflow) / slack) * slack - offset
}

/**
 * The largest share that cost no measurable AUC on KuaiRand, windows of 32 and 64 events; an eighth
 * cost click 0.0002 at 32. A new event then costs the K/V of about 32 tokens, whatever the room.
 */
const DEFAULT_SHARE = 1 / 16

/** Slack when nobody says: the window then moves, and K/V is rebuilt, for one new event in so many. */
export function defaultSlack(room: number): number {
  return Math.floor(room * DEFAULT_SHARE)
}

/** @throws {RankError} CONFIG_INVALID unless `slack` leaves room for at least one event */
export function checkSlack(slack: number, config: HstuConfig): number {
  const most = Math.max(0, roomOf(config) - 1)
  if (Number.isInteger(slack) && slack >= 0 && slack <= most) return slack
  throw new RankError(
    'CONFIG_INVALID',
    `window slack must be an integer from 0 to ${most}, below the ${roomOf(config)} events that the model holds, got ${show(slack)}`,
  )
}
