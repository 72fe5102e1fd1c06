import { closeSync, openSync, writeSync } from 'node:fs'
import type { HstuConfig } from '../../model/config.js'
import { parseConfig } from '../../model/config.js'
import { randomConfig } from '../../model/export/random.js'
import type { RankInput } from '../../model/request.js'

export const ID_FILE = 'items.txt'
const START_SECONDS = 1_700_000_000
const FLUSH = 2 ** 20

/** A small model: what differs between runs is the table. */
export function tableConfig(items: number): HstuConfig {
  const { itemFeatures, ...rest } = randomConfig({
    ...{ layers: 2, dModel: 64, heads: 2, maxTokens: 128 },
    items: items + 1,
  })
  const [, ...others] = itemFeatures
  const id = { name: 'id', rows: items + 1, encoding: { kind: 'vocabulary', file: ID_FILE } }
  return parseConfig({ ...rest, name: `items-${items}`, itemFeatures: [id, ...others] })
}

/** About 13 characters, in no order. */
export function idOf(item: number): string {
  return `${(Math.imul(item, 2_654_435_761) >>> 0).toString(36)}.${item.toString(36)}`
}

/** A list of so many ids. */
export function writeIds(file: string, items: number): void {
  const fd = openSync(file, 'w')
  try {
    let text = ''
    for (let item = 0; item < items; item++) {
      text += `${idOf(item)}\n`
      if (text.length < FLUSH) continue
      writeSync(fd, text)
      text = ''
    }
    writeSync(fd, text)
  } finally {
    closeSync(fd)
  }
}

/** A request of 50 events and `m` candidates of `items`. */
export function requestOver(
  items: number,
  user: string,
  m: number,
  random: () => number,
): RankInput {
  const pick = () => idOf(Math.floor(random() * items))
  return {
    user: { id: user },
    histories: [
      Array.from({ length: 50 }, (_, i) => ({
        ...{ item: pick(), time: START_SECONDS + i * 3600, actions: ['click'] },
      })),
    ],
    series: {},
    candidates: Array.from({ length: m }, () => ({ item: pick() })),
    time: START_SECONDS + 50 * 3600,
  }
}

/** Of this process: kB of smaps_rollup as MiB. */
export function memoryMiB(rollup: string) {
  const of = (key: string) =>
    Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(rollup)?.[1] ?? Number.NaN) / 1024
  return { rss: of('Rss'), pss: of('Pss'), anonymous: of('Anonymous') }
}
