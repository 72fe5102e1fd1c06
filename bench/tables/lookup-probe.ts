// node --expose-gc dist/bench/tables/lookup-probe.js index|single|map FILE ITEMS: ids to rows, by the bundle's index,
// all together or one by one, or by a Map of the same ids. Prints milliseconds for 2,048 ids, and what the ids take in this process's memory.
import { readFileSync } from 'node:fs'
import { type IdIndex, openIdIndex } from '../../model/id-index.js'
import { createRandom } from '../../model/random.js'
import { quantile } from '../stats.js'
import { idOf, memoryMiB } from './model.js'

const CANDIDATES = 2048
const ROUNDS = 400

const [kind, file = '', itemsText = ''] = process.argv.slice(2)
const items = Number(itemsText)
const memory = () => {
  globalThis.gc?.()
  return memoryMiB(readFileSync('/proc/self/smaps_rollup', 'utf8'))
}
const before = memory()
const start = performance.now()
const find = kind === 'map' ? mapOf(items) : indexOf(openIdIndex(file), kind === 'index')
const openMs = performance.now() - start
const after = memory()
const random = createRandom(1)
const times: number[] = []
const unknownTimes: number[] = []
const timed = (ids: readonly string[], expected: number) => {
  const begin = performance.now()
  const found = find(ids)
  const ms = performance.now() - begin
  if (found !== expected) throw new Error(`found ${found} ids, expected ${expected}`)
  return ms
}
for (let round = 0; round < ROUNDS; round++) {
  const ids = Array.from({ length: CANDIDATES }, () => idOf(Math.floor(random() * items)))
  // As they come out of a request: strings that nobody has hashed yet.
  times.push(timed(JSON.parse(JSON.stringify(ids)), CANDIDATES))
  const unknown = ids.map((id) => `${id}?`)
  unknownTimes.push(timed(JSON.parse(JSON.stringify(unknown)), 0))
}
const mib = 2 ** 20 / items
process.stdout.write(
  `${JSON.stringify({
    openMs,
    p10Ms: quantile(times, 0.1),
    p50Ms: quantile(times, 0.5),
    unknownP50Ms: quantile(unknownTimes, 0.5),
    bytesPerId: (after.rss - before.rss) * mib,
    ownBytesPerId: (after.anonymous - before.anonymous) * mib,
  })}\n`,
)

/** How many of some ids there are. */
type Find = (ids: readonly string[]) => number

/** Together, as a request's candidates are looked up, or one by one. */
function indexOf(index: IdIndex, isTogether: boolean): Find {
  if (isTogether) return (ids) => index.indicesOf(ids).reduce((n, row) => n + Number(row >= 0), 0)
  return (ids) => ids.reduce((n, id) => n + Number(index.indexOf(id) >= 0), 0)
}

function mapOf(count: number): Find {
  const rows = new Map<string, number>()
  for (let item = 0; item < count; item++) rows.set(idOf(item), item)
  return (ids) => ids.reduce((n, id) => n + Number(rows.has(id)), 0)
}
