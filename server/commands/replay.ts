import { availableParallelism } from 'node:os'

/** Users in flight: enough to keep every worker busy while another request is being sequenced. */
const USERS_PER_CORE = 2

/** Replays every user, some at a time, each alone from the first request to the last. */
export async function replayAll<User>(
  users: readonly User[],
  replay: (user: User) => Promise<void>,
): Promise<void> {
  const waiting = users.values()
  const replayRest = async () => {
    for (const user of waiting) await replay(user)
  }
  const callers = USERS_PER_CORE * availableParallelism()
  await Promise.all(Array.from({ length: callers }, replayRest))
}
