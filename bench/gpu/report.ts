// node dist/bench/gpu/report.js [DIR]: gpu.json -> gpu.md and its charts.
import { readFileSync, writeFileSync } from 'node:fs'
import { lineChart, type Series } from '../chart.js'
import { page } from './page.js'
import { keptKvSeries } from './report-work.js'
import { allPoints, OURS, type PartialResult, peerPoint, pointOf } from './result.js'

const CHARTED = 'paper'

const folder = process.argv[2] ?? 'bench/results'
const result: PartialResult = JSON.parse(readFileSync(`${folder}/gpu.json`, 'utf8'))
const { machine, latency, peer } = result
const subtitle = `${machine.gpu}, Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}, commit ${machine.commit}`

/** Score on the charted shape by m, one user again and again, as the peer does. */
function scoreSeries(): Series[] {
  const points = allPoints(latency ?? []).filter(({ shape }) => shape.shape === CHARTED)
  const series = (name: string, msAt: (point: (typeof points)[number]) => number | undefined) => {
    const known = points.flatMap((point) => {
      const ms = msAt(point)
      return ms === undefined ? [] : [[point.m, ms] as const]
    })
    return known.length === 0 ? [] : [{ name, points: known }]
  }
  return [
    ...[OURS, 'capi, plain', 'node'].flatMap((engine) =>
      series(engine, ({ shape, m }) => pointOf(shape, engine, m)?.scoreSame.ms),
    ),
    ...series(
      'Meta, Triton under a graph',
      ({ m }) => peerPoint(peer, { shape: CHARTED, what: 'score', m, route: 'plain' })?.ioMs,
    ),
  ]
}

if (latency !== undefined) {
  writeFileSync(
    `${folder}/gpu-score-by-candidates.svg`,
    lineChart({
      title: 'Score on cached K/V, paper shape, fp16, one user again and again',
      subtitle,
      x: { label: 'candidates m', log: true },
      y: { label: 'milliseconds', log: true },
      series: scoreSeries(),
    }),
  )
  writeFileSync(
    `${folder}/gpu-kept-kv.svg`,
    lineChart({
      title: 'Kept K/V over one pass each time: below 1 it pays',
      subtitle,
      x: { label: 'requests of one user' },
      y: { label: 'cost with kept K/V / cost of one pass each' },
      series: keptKvSeries(latency),
    }),
  )
}
writeFileSync(`${folder}/gpu.md`, page(result))
