import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from '../../model/check.js'
import { RankError } from '../../model/errors.js'
import { type Family, labelsByHash } from './family.js'

const closed = { additionalProperties: false }
const Percent = Type.Number({ minimum: 0, maximum: 100 })
const LabelsFile = Type.Record(
  Type.String(),
  Type.Object(
    {
      stable: Type.Optional(Type.String()),
      canary: Type.Optional(
        Type.Object({ version: Type.String(), weightPercent: Percent }, closed),
      ),
      shadow: Type.Optional(Type.Object({ version: Type.String(), sharePercent: Percent }, closed)),
    },
    closed,
  ),
)
export type WantedLabels = Static<typeof LabelsFile>

const compiled = Compile(LabelsFile)

export const LABELS_FILE = 'labels.json'

/** @throws {RankError} CONFIG_INVALID */
export function parseLabels(text: string, file: string): WantedLabels {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new RankError('CONFIG_INVALID', `${file} must be JSON, got other text`, { cause })
  }
  return check(compiled, value, 'CONFIG_INVALID', file)
}

/** The text of a labels file for what is now, names in order. */
export function labelsText(families: readonly Family[]): string {
  const wanted: WantedLabels = {}
  for (const family of families.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
    wanted[family.name] = labelsByHash(family)
  }
  return `${JSON.stringify(wanted, null, 2)}\n`
}
