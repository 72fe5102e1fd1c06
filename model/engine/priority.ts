import { getPriority, setPriority } from 'node:os'

/** Below the main thread: with every core inferring, the event loop is still scheduled at once. */
const NICENESS = 5
/** Of what shall not be felt: beside threads of niceness 5 it gets a twentieth of a core. */
export const LOWEST = 19

/**
 * Lowers the priority of a thread by Linux's id of it, 0 for the calling one. One that is as low
 * already, because the process was started so, is left alone: raising it again takes a privilege.
 */
export function lowerPriority(thread: number, niceness = NICENESS): void {
  if (getPriority(thread) < niceness) setPriority(thread, niceness)
}
