import { getPriority, setPriority } from 'node:os'

/** Below the main thread: with every core inferring, the event loop is still scheduled at once. */
const NICENESS = 5

/**
 * Lowers the priority of a thread by Linux's id of it, 0 for the calling one. One that is as low
 * already, because the process was started so, is left alone: raising it again takes a privilege.
 */
export function lowerPriority(thread: number): void {
  if (getPriority(thread) < NICENESS) setPriority(thread, NICENESS)
}
