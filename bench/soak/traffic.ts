import { readFileSync } from 'node:fs'
import { isRecord } from '../../server/fault.js'
import { requestBytes } from '../overload/client.js'

/** Rankings of one generation of users; the next one's have other names, and K/V of their own. */
const GENERATION_SEC = 30
/** Users of so many generations ask at a time. */
const GENERATIONS = 3
/** Users with a stored history; where there are more, the oldest is forgotten. */
const KEPT_USERS = 200
const EVENTS = 5
/** Of 1000 requests; all others are rankings with a posted history. */
const SHARES = { events: 15, stored: 15, forget: 20, prefetch: 10, batch: 2 }

export type Kind = keyof typeof SHARES | 'rank'
export type SoakRequest = { readonly kind: Kind; readonly bytes: Buffer }

type Sample = { readonly user: { readonly id: string }; readonly history: readonly object[] }

/**
 * What a service gets in a day, in minutes: users who come and go, histories stored, ranked by and
 * forgotten, prefetches and batches.
 */
export function createSoakTraffic(files: readonly string[], random: () => number) {
  const samples = files.map((file) => sampleIn(file))
  const posted = samples.filter(({ history }) => history.length >= EVENTS)
  /** Users whose history was ever stored, and those of them who were forgotten: numbers from 1. */
  let stored = 0
  let forgotten = 0
  const pick = <T>(list: readonly T[]): T => {
    const found = list[Math.floor(random() * list.length)]
    if (found === undefined) throw new Error('no requests to choose from')
    return found
  }
  const kindOf = (): Kind => {
    let left = 1000 * random()
    for (const [kind, share] of Object.entries(SHARES)) {
      left -= share
      if (left < 0) return kind as Kind
    }
    return 'rank'
  }
  const post = (path: string, body: object) =>
    requestBytes(JSON.stringify(body), {}, `POST ${path}`)

  return {
    /** `second`: since the soak began. */
    next(second: number): SoakRequest {
      const generation = Math.floor(second / GENERATION_SEC) - Math.floor(random() * GENERATIONS)
      const sample = pick(samples)
      const named = { ...sample, user: { ...sample.user, id: `${sample.user.id}/${generation}` } }
      // Rankings by a stored history need one that was posted.
      const drawn = kindOf()
      // Else the histories that nobody forgets would look like a leak.
      const kind = drawn === 'forget' && stored - forgotten <= KEPT_USERS ? 'rank' : drawn
      const path = (user: number) => `/v1/users/stored-${user}`
      switch (kind) {
        case 'events': {
          const events = pick(posted).history.slice(-EVENTS)
          return { kind, bytes: post(`${path(++stored)}/events`, { events }) }
        }
        case 'stored': {
          const kept = Math.max(1, stored - forgotten)
          const user = { id: `stored-${stored - Math.floor(random() * kept)}` }
          const { history: _, ...rest } = { ...sample, user }
          return { kind, bytes: post('/v1/rank', rest) }
        }
        case 'forget':
          return { kind, bytes: requestBytes('', {}, `DELETE ${path(++forgotten)}`) }
        case 'prefetch': {
          const { user, history } = named
          return { kind, bytes: post('/v1/prefetch', { user, history }) }
        }
        case 'batch':
          return { kind, bytes: post('/v1/rank/batch', { requests: [named, named] }) }
        case 'rank':
          return { kind, bytes: post('/v1/rank', named) }
      }
    },
  }
}

function sampleIn(file: string): Sample {
  const found: unknown = JSON.parse(readFileSync(file, 'utf8'))
  if (isRecord(found) && isRecord(found.user) && Array.isArray(found.history)) {
    return { ...found, user: { ...found.user, id: String(found.user.id) }, history: found.history }
  }
  throw new Error(`${file} must be a request with user and history`)
}
