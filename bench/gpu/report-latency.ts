// The page's parts on single runs: score and one pass beside Meta's kernels, runs per second.
import { count, figure, table } from '../markdown.js'
import { LARGEST_RUN, type Timing } from './latency.js'
import {
  allPoints,
  OURS,
  type Peer,
  type PeerQuery,
  peerPoint,
  pointOf,
  type ShapeLatency,
} from './result.js'
import { SHAPES, stuConfig } from './shapes.js'

const COMPARED = [OURS, 'capi, plain', 'node']
const BYTES_FP16 = 2

type Against = { readonly at: string; readonly ratio: number }

/** Says where ours is slower, the worst first: ratios are ours over the peer's, at least one. */
export function verdict(peer: string, ratios: readonly Against[]): string {
  const lost = ratios.filter(({ ratio }) => ratio > 1).sort((a, b) => b.ratio - a.ratio)
  const won = ratios.filter(({ ratio }) => ratio <= 1).sort((a, b) => a.ratio - b.ratio)
  const list = (of: readonly Against[]) =>
    of.map(({ at, ratio }) => `${at} (${ratio.toFixed(2)})`).join('; ')
  return [
    `Against ${peer}, ours over theirs:`,
    ...(lost.length === 0 ? [] : [`**slower** at ${list(lost)}${won.length === 0 ? '.' : ','}`]),
    ...(won.length === 0 ? [] : [`not slower at ${list(won)}.`]),
  ].join(' ')
}

export function scoreSection(latency: readonly ShapeLatency[], peer: Peer | undefined): string[] {
  const megabytes = SHAPES.map(kvBytes).map((bytes) => bytes / 1e6)
  const points = allPoints(latency)
  return [
    '## Score on cached K/V',
    '',
    `Milliseconds of one call of the engine, from candidate rows in JavaScript to logits in JavaScript, one call at a time; medians. "Turns": four users take turns, so with graphs every run copies the user's K/V (${figure(Math.min(...megabytes))} to ${figure(Math.max(...megabytes))} MB) into the graph's fixed memory; "same": one user again and again. The engine node keeps K/V on the host and sends it with every run. More than ${count(LARGEST_RUN)} candidates are runs of ${count(LARGEST_RUN)}, one after the other, but where kernels are used.`,
    '',
    ...table(
      [
        'shape',
        'm',
        ...COMPARED.flatMap((engine) => [
          `${engine}: same${engine === OURS ? ' (p10–p90)' : ''}`,
          'turns',
        ]),
      ],
      points.map(({ shape, m }) => [
        shape.shape,
        count(m),
        ...COMPARED.flatMap((engine) => {
          const point = pointOf(shape, engine, m)
          const same = engine === OURS ? spread(point?.scoreSame) : figure(point?.scoreSame.ms)
          return [same, figure(point?.score.ms)]
        }),
      ]),
    ),
    '',
    ...(peer === undefined ? [] : scoreAgainstPeer(points, peer)),
  ]
}

function scoreAgainstPeer(points: ReturnType<typeof allPoints>, peer: Peer): string[] {
  const rows = points.flatMap(({ shape, m }) => {
    const of = (route: PeerQuery['route']) =>
      peerPoint(peer, { shape: shape.shape, what: 'score', m, route })
    const ours = pointOf(shape, OURS, m)?.scoreSame.ms
    const [plain, tma] = [of('plain'), of('tma')]
    if (ours === undefined || (plain === undefined && tma === undefined)) return []
    const inPlace = [plain?.scoreInPlaceIoMs, tma?.scoreInPlaceIoMs]
    const best = least([plain?.ioMs, tma?.ioMs, ...inPlace])
    return [{ at: at(shape, m), shape, m, ours, plain, tma, inPlace, best }]
  })
  if (rows.length === 0) return []
  return [
    "### Beside Meta's Triton kernels",
    '',
    `Meta's public kernels (generative-recommenders, Triton) under a CUDA graph, fp16, same layer and shape: milliseconds of the host's wall clock with the pinned copies of ids in and scores out. It reads one user's K/V again and again, so the ratios take our "same". Its default concatenates the cached K/V and the candidates' on every call, as Meta's own layer does; "in place" writes only the candidates' rows; TMA is its route with tensor descriptors, copies that make its inputs contiguous included. Every configuration is autotuned at its size. Theirs embeds one table and has a linear head; ours embeds three features per item and has two heads with a hidden layer.`,
    '',
    ...table(
      [
        'shape',
        'm',
        'ours, same',
        'Meta, default',
        'Meta, TMA',
        'in place, default',
        'in place, TMA',
        'ours / default',
        'ours / TMA',
        'ours / its best',
      ],
      rows.map(({ shape, m, ours, plain, tma, inPlace, best }) => [
        shape.shape,
        count(m),
        figure(ours),
        figure(plain?.ioMs),
        figure(tma?.ioMs),
        ...inPlace.map(figure),
        ratio(ours, plain?.ioMs),
        ratio(ours, tma?.ioMs),
        ratio(ours, best),
      ]),
    ),
    '',
    `* ${verdict(
      "Meta's default",
      rows.flatMap((row) => against(row.at, row.ours, row.plain?.ioMs)),
    )}`,
    `* ${verdict(
      'the best of its four ways',
      rows.flatMap((row) => against(row.at, row.ours, row.best)),
    )}`,
    '',
  ]
}

export function rankSection(latency: readonly ShapeLatency[], peer: Peer | undefined): string[] {
  const rows = allPoints(latency).map(({ shape, m }) => {
    const of = (route: PeerQuery['route']) =>
      peerPoint(peer, { shape: shape.shape, what: 'rank', m, route })?.ioMs
    const [ours, plain, node] = COMPARED.map((engine) => pointOf(shape, engine, m)?.rank)
    const theirs = { plain: of('plain'), tma: of('tma') }
    return { at: at(shape, m), shape, m, ours, plain, node, theirs }
  })
  const best = rows.flatMap((row) =>
    against(row.at, row.ours?.ms, least([row.theirs.plain, row.theirs.tma])),
  )
  return [
    '## One pass',
    '',
    `Milliseconds of one call with the whole history and all candidates, no K/V kept, users in turns, one call at a time; medians, from rows in JavaScript to logits in JavaScript.${best.length === 0 ? '' : " Meta's columns as above, with ids in and scores out."}`,
    '',
    ...table(
      [
        'shape',
        'm',
        `${OURS} (p10–p90)`,
        'capi, plain',
        'node',
        'ours / node',
        'Meta, default',
        'Meta, TMA',
        'ours / default',
        'ours / TMA',
      ],
      rows.map(({ shape, m, ours, plain, node, theirs }) => [
        shape.shape,
        count(m),
        spread(ours),
        figure(plain?.ms),
        figure(node?.ms),
        ratio(ours?.ms, node?.ms),
        figure(theirs.plain),
        figure(theirs.tma),
        ratio(ours?.ms, theirs.plain),
        ratio(ours?.ms, theirs.tma),
      ]),
    ),
    '',
    ...(best.length === 0 ? [] : [verdict('the better of its two', best), '']),
  ]
}

export function throughputSection(
  latency: readonly ShapeLatency[],
  peer: Peer | undefined,
): string[] {
  return [
    '## Requests per second',
    '',
    'Eight callers of the engine, each with one call at a time, for 0.5 s: score on cached K/V (users in turns), one pass, and one pass in explicit batches of four users. "node x 4" has four worker threads, the other node one.',
    '',
    ...table(
      ['shape', 'm', 'engine', 'score', 'one pass', 'one pass, batches of 4'],
      allPoints(latency).flatMap(({ shape, m }) =>
        shape.engines.flatMap(({ engine }) => {
          const point = pointOf(shape, engine, m)
          if (point === undefined) return []
          const { scorePerSecond, rankPerSecond, batchedRankPerSecond } = point
          const figures = [scorePerSecond, rankPerSecond, batchedRankPerSecond].map(count)
          return [[shape.shape, count(m), engine, ...figures]]
        }),
      ),
    ),
    '',
    "One pass over 1, 2, 4 and 8 users of full length in one call, one call at a time: milliseconds per user. Meta's: eight users in one launch, per user, the better of its routes.",
    '',
    ...table(
      ['shape', 'm', 'engine', '1', '2', '4', '8', 'Meta, 8'],
      latency.flatMap((shape) => {
        const points = shape.engines[0]?.points ?? []
        const m = (points.at(-2) ?? points[0])?.m ?? 0
        const theirs = least(
          (['plain', 'tma'] as const).map(
            (route) =>
              peerPoint(peer, { shape: shape.shape, what: 'rank', m, batch: 8, route })?.ioMs,
          ),
        )
        return shape.engines.map(({ engine, batches }) => [
          shape.shape,
          count(m),
          engine,
          ...[1, 2, 4, 8].map((users) =>
            figure(batches.find((batch) => batch.users === users)?.msPerUser),
          ),
          figure(theirs === undefined ? undefined : theirs / 8),
        ])
      }),
    ),
    '',
  ]
}

const at = ({ shape }: ShapeLatency, m: number) => `${shape} m = ${count(m)}`

function spread(timing: Timing | undefined): string {
  if (timing === undefined) return figure(undefined)
  const { ms, p10, p90 } = timing
  return `${figure(ms)} (${figure(p10)}–${figure(p90)})`
}

function ratio(ours: number | undefined, theirs: number | undefined): string {
  return ours === undefined || theirs === undefined ? figure(undefined) : (ours / theirs).toFixed(2)
}

function against(at: string, ours: number | undefined, theirs: number | undefined): Against[] {
  return ours === undefined || theirs === undefined ? [] : [{ at, ratio: ours / theirs }]
}

function least(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined)
  return known.length === 0 ? undefined : Math.min(...known)
}

/** K/V of one user of full length. */
function kvBytes(shape: (typeof SHAPES)[number]): number {
  const { layers, heads, dqk, dv, maxTokens } = stuConfig(shape)
  return layers * maxTokens * heads * (dqk + dv) * BYTES_FP16
}
