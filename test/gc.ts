import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')

/** Collects garbage now, all of it; finalisers run in a later turn of the event loop. */
export const collectGarbage: () => void = runInNewContext('gc')
