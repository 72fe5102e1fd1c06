import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from './check.js'
import { type ModelFeature, readJson } from './config.js'
import type { Arithmetic, Bundle } from './manifest.js'
import { createRandom } from './random.js'
import type { RankInput } from './request.js'
import type { Vocabulary } from './vocabulary.js'
import { roomOf } from './window.js'

/** Largest absolute logit difference to the float64 oracle that products may show (spec, golden cases). */
export const TOLERANCE: Record<Arithmetic, number> = { fp32: 1e-4, fp16: 4e-2, bf16: 8e-2 }

const FeatureValue = Type.Union([Type.String(), Type.Number()])
const Features = Type.Record(Type.String(), FeatureValue)
const Vectors = Type.Array(
  Type.Object({
    request: Type.Object({
      user: Type.Object({ id: Type.String(), features: Features }),
      histories: Type.Array(
        Type.Array(
          Type.Object({
            item: Type.String(),
            time: Type.Integer(),
            actions: Type.Array(Type.String()),
            features: Type.Optional(Features),
          }),
        ),
      ),
      series: Type.Record(
        Type.String(),
        Type.Array(Type.Object({ value: FeatureValue, time: Type.Integer() })),
      ),
      candidates: Type.Array(
        Type.Object({ item: Type.String(), features: Type.Optional(Features) }),
      ),
      time: Type.Integer(),
    }),
    logits: Type.Array(Type.Array(Type.Number())),
  }),
  { minItems: 1 },
)
const compiled = Compile(Vectors)

/** Requests with the oracle's logits (candidates, tasks): what `verify` and start-up hold a bundle to. */
export type Vectors = Static<typeof Vectors>

export function readVectors({ folder, manifest }: Bundle): Vectors {
  const file = `${folder}/${manifest.vectors.file}`
  return check(compiled, readJson(file, 'BUNDLE_INVALID'), 'BUNDLE_INVALID', file)
}

/** Events per sample request: none, one, odd and even lengths, and more than a cache page of tokens. */
const EVENT_COUNTS = [0, 1, 2, 7, 20, 40]
const CANDIDATES = 5
const START_SECONDS = 1_700_000_000

/** Seeded requests over a model's own vocabulary, within its limits. */
export function sampleRequests(vocabulary: Vocabulary, seed: number): RankInput[] {
  const { config, scheme } = vocabulary
  const random = createRandom(seed)
  const items = vocabulary.knownItems()
  const pick = <T>(values: readonly T[], otherwise: T): T =>
    values[Math.floor(random() * values.length)] ?? otherwise
  const values = (features: readonly ModelFeature[]) =>
    Object.fromEntries(features.map(({ name, rows }) => [name, Math.floor(random() * (rows - 1))]))
  const features = () =>
    scheme.samplesFeatures ? { features: values(config.itemFeatures.slice(1)) } : {}
  const counts = [...new Set(EVENT_COUNTS.map((count) => Math.min(count, roomOf(config))))]
  return counts.map((events, i) => {
    let time = START_SECONDS
    const history = Array.from({ length: events }, () => {
      // Gaps from seconds to months, so that vectors reach many time buckets.
      time += Math.floor(10 ** (random() * 7))
      return {
        item: pick(items, 'unknown'),
        time,
        actions: config.actions.filter(() => random() < 0.4),
        ...features(),
      }
    })
    return {
      user: {
        id: `sample-${i}`,
        features: scheme.samplesFeatures ? values(config.context) : {},
      },
      histories: [history],
      series: {},
      candidates: Array.from({ length: CANDIDATES }, () => ({
        item: pick(items, 'unknown'),
        ...features(),
      })),
      time: time + 60,
    }
  })
}
