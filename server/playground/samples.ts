import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { readConfig } from '../../model/config.js'
import { isRecord } from '../fault.js'

/** A sample user as the page's list shows it. */
export type SampleLine = {
  /** What to ask for, such as `0007`. */
  readonly name: string
  readonly user: string
  readonly events: number
  readonly candidates: number
  /** Candidates that the user was really shown after the moment of the request. */
  readonly shown: number
}

export type Sample = {
  /** A body for POST /v1/rank. */
  readonly request: unknown
  /** What the user really did with the candidates that were shown, by item. */
  readonly shown: unknown
  /** Raw catalogue features of the items in the request. */
  readonly catalogue: {
    readonly features: unknown
    readonly items: { readonly [item: string]: unknown }
  }
}

export type Samples = {
  /** Name of the model that the samples are for. */
  readonly model: string
  list(): Promise<readonly SampleLine[]>
  /** Undefined when there is no such sample. */
  read(name: string): Promise<Sample | undefined>
}

/** The demo model and its real requests, in a clone and in an installed package alike. */
export const DEMO_FOLDER = fileURLToPath(new URL('../../../demo/kuairand', import.meta.url))

/** The requests of a demo folder, with what came of them; undefined where there is no such folder. */
export function openSamples(folder = DEMO_FOLDER): Samples | undefined {
  if (!existsSync(`${folder}/requests`)) return undefined
  const { name: model } = readConfig(`${folder}/config.json`)
  if (model === undefined) return undefined
  const names = once(async () => {
    const files = await readdir(`${folder}/requests`)
    return files.flatMap((file) => (file.endsWith('.json') ? [file.slice(0, -5)] : [])).sort()
  })
  const labels = once(() => readJson(`${folder}/labels.json`))
  const catalogue = once(() => readJson(`${folder}/items.json`))
  const request = (name: string) => readJson(`${folder}/requests/${name}.json`)
  const shownOf = async (name: string) => recordAt(await labels(), `${name}.json`)

  const list = once(async () => {
    const lines: SampleLine[] = []
    // One after another: 1.7 MB of JSON at once would hold up the rankings of others.
    for (const name of await names()) {
      const body = await request(name)
      const user = isRecord(body) && isRecord(body.user) ? String(body.user.id) : ''
      const [events, candidates] = [
        listAt(body, 'history').length,
        itemsOf(body, 'candidates').length,
      ]
      lines.push({ name, user, events, candidates, shown: Object.keys(await shownOf(name)).length })
    }
    return lines
  })

  return {
    model,
    list,
    async read(name) {
      if (!(await names()).includes(name)) return undefined
      const [body, shown, all] = [await request(name), await shownOf(name), await catalogue()]
      const known = recordAt(all, 'items')
      const asked = new Set([...itemsOf(body, 'history'), ...itemsOf(body, 'candidates')])
      const items = Object.fromEntries(
        [...asked].flatMap((item) => (Object.hasOwn(known, item) ? [[item, known[item]]] : [])),
      )
      const features = isRecord(all) ? all.features : []
      return { request: body, shown, catalogue: { features, items } }
    },
  }
}

/** What `read` gives, asked for once; a failure is tried again. */
function once<T>(read: () => Promise<T>): () => Promise<T> {
  let kept: Promise<T> | undefined
  return () => {
    kept ??= read().catch((error: unknown) => {
      kept = undefined
      throw error
    })
    return kept
  }
}

async function readJson(file: string): Promise<unknown> {
  return JSON.parse(await readFile(file, 'utf8'))
}

function recordAt(value: unknown, name: string): Record<string, unknown> {
  const found = isRecord(value) ? value[name] : undefined
  return isRecord(found) ? found : {}
}

function listAt(value: unknown, name: string): readonly unknown[] {
  const found = isRecord(value) ? value[name] : undefined
  return Array.isArray(found) ? found : []
}

/** Item ids of a list of events or candidates, which may be bare ids. */
function itemsOf(body: unknown, name: string): string[] {
  return listAt(body, name).map((entry) => String(isRecord(entry) ? entry.item : entry))
}
