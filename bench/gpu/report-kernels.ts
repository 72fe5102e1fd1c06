// The page's part on kernel libraries: the same files with and without them, and Meta's kernels.
import { count, figure, table } from '../markdown.js'
import { WITH_KERNELS } from './latency.js'
import {
  allPoints,
  engineOf,
  OURS,
  type Peer,
  peerPoint,
  pointOf,
  type ShapeLatency,
} from './result.js'

/** Nothing where no engine had kernels. */
export function kernelSection(latency: readonly ShapeLatency[], peer: Peer | undefined): string[] {
  const points = allPoints(latency).flatMap(({ shape, m }) => {
    const [without, own] = [pointOf(shape, OURS, m), pointOf(shape, WITH_KERNELS, m)]
    return own === undefined ? [] : [{ shape, m, without, own }]
  })
  if (points.length === 0) return []
  const ratio = (ours: number, theirs: number | undefined) =>
    figure(theirs === undefined ? undefined : ours / theirs)
  const rows = points.flatMap(({ shape, m, without, own }) =>
    (['score', 'rank'] as const).map((what) => {
      const meta = peerPoint(peer, { shape: shape.shape, what, m, route: 'plain' })?.ioMs
      const timing = what === 'score' ? own.scoreSame : own.rank
      const before = what === 'score' ? without?.scoreSame : without?.rank
      const perSecond = what === 'score' ? own.scorePerSecond : own.rankPerSecond
      return [
        ...[shape.shape, what === 'score' ? 'score on K/V' : 'one pass', count(m)],
        ...[figure(before?.ms), figure(timing.ms), ratio(timing.ms, before?.ms)],
        ...[figure(meta), ratio(timing.ms, meta), count(perSecond)],
      ]
    }),
  )
  const prefills = latency.flatMap((shape) => {
    const [without, own] = [engineOf(shape, OURS), engineOf(shape, WITH_KERNELS)]
    return own === undefined
      ? []
      : [[shape.shape, figure(without?.prefill.ms), figure(own.prefill.ms)]]
  })
  return [
    '## With the kernel library',
    '',
    "The same bundles with model/kernels/cuda in place of the files' functions: milliseconds of one call at a time, medians, one user again and again; Meta's Triton kernels under a CUDA graph with the copies of ids in and scores out.",
    '',
    ...table(
      [
        'shape',
        'what',
        'm',
        'without',
        'with',
        'with / without',
        'Meta',
        'with / Meta',
        'with, per second',
      ],
      rows,
    ),
    '',
    ...table(['shape', 'prefill, without', 'with'], prefills),
    '',
  ]
}
