import { writeFileSync } from 'node:fs'
import { lineChart } from './chart.js'
import type { FalconResult, PeerResult, Point } from './falcon.js'
import type { HttpResult } from './http.js'
import type { Machine } from './machine.js'
import { table } from './markdown.js'
import type { MemoryPoint } from './memory.js'

export type BenchResult = {
  readonly machine: Machine
  readonly falcon: FalconResult
  readonly memory: readonly MemoryPoint[]
  readonly http: HttpResult
}

const M_COMPARED = 1024

/** Writes cpu.md and its charts into `out`: every figure of the README comes from there. */
export function writeReport(result: BenchResult, out: string): void {
  const { machine, falcon } = result
  const subtitle = `${machine.cpu}, ${machine.cores} cores, Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}, commit ${machine.commit}`
  const chart = (name: string, svg: string) => writeFileSync(`${out}/${name}.svg`, svg)
  const pairs = (points: readonly Point[]) => points.map(({ x, ms }) => [x, ms] as const)
  const { slope, intercept } = falcon.fit
  chart(
    'cost-by-candidates',
    lineChart({
      title: `One request on cached K/V: cost is linear in the candidates (R² ${falcon.fit.r2.toFixed(5)})`,
      subtitle,
      x: { label: 'candidates m' },
      y: { label: 'milliseconds' },
      series: [
        { name: 'measured', points: pairs(falcon.byM) },
        {
          name: 'least squares',
          dashed: true,
          points: falcon.byM.map(({ x }) => [x, intercept + slope * x] as const),
        },
      ],
    }),
  )
  chart(
    'cost-by-micro-batch',
    lineChart({
      title: `Micro-batch size b, m = ${M_COMPARED} on cached K/V`,
      subtitle,
      x: { label: 'micro-batch size b', log: true },
      y: { label: 'milliseconds' },
      series: [
        { name: 'Peregrine', points: pairs(falcon.byB) },
        ...(falcon.peers.length === 0
          ? []
          : [
              {
                name: 'PyTorch float32, same run',
                points: bestPeer(falcon.peers, 'fp32').map(({ x, ms }) => [x, ms] as const),
              },
            ]),
      ],
    }),
  )
  chart(
    'cost-by-history',
    lineChart({
      title: `History length, m = ${M_COMPARED} on cached K/V`,
      subtitle,
      x: { label: 'history tokens n' },
      y: { label: 'milliseconds' },
      series: [{ name: 'measured', points: pairs(falcon.byN) }],
    }),
  )
  writeFileSync(`${out}/cpu.md`, markdown(result))
}

function markdown({ machine, falcon, memory, http }: BenchResult): string {
  const ms = (value: number) => (value >= 100 ? value.toFixed(0) : value.toFixed(1))
  const compared = Math.min(...falcon.comparedMs)
  const lines = [
    '# CPU results',
    '',
    'Written by `npm run bench -- --python PYTHON`, where PYTHON has PyTorch; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}, commit ${machine.commit}, ${machine.date}`,
    `* Paper shape: 3 layers, width 512, 8 heads, 2,048 tokens, random weights; 1 worker x ${falcon.threads} threads; b = ${falcon.microBatchSize} (calibrated); medians; whole pipeline without HTTP`,
    '',
    '## Cost against m (cached K/V)',
    '',
    ...table(
      ['m', 'ms', 'us per candidate'],
      falcon.byM.map(({ x, ms: t }) => [String(x), ms(t), ((1000 * t) / x).toFixed(1)]),
    ),
    '',
    `Least squares over all rows: R² = ${falcon.fit.r2.toFixed(5)}; cost per candidate at 16,384 is ${falcon.perCandidateRatio.toFixed(3)} times that at 1,024.`,
    '',
    '![cost against m](cost-by-candidates.svg)',
    '',
    '## Cost against b (m = 1,024, cached K/V)',
    '',
    ...table(
      ['b', 'ms'],
      falcon.byB.map(({ x, ms: t }) => [String(x), ms(t)]),
    ),
    '',
    '![cost against b](cost-by-micro-batch.svg)',
    '',
    '## Cost against n (m = 1,024, cached K/V)',
    '',
    ...table(
      ['n', 'ms'],
      falcon.byN.map(({ x, ms: t }) => [String(x), ms(t)]),
    ),
    '',
    '![cost against n](cost-by-history.svg)',
    '',
    '## Cached, appended, uncached (n = 2,048)',
    '',
    ...table(
      ['m', 'hit ms', 'append of one event ms', 'miss ms', 'miss / hit'],
      falcon.byState.map((s) => [
        String(s.m),
        ms(s.hitMs),
        ms(s.appendMs),
        ms(s.missMs),
        (s.missMs / s.hitMs).toFixed(1),
      ]),
    ),
    '',
    '## Against other ways to score 1,024 candidates (n = 2,048)',
    '',
    ...table(
      ['how', 'ms', 'times ours'],
      [
        ['M-FALCON on cached K/V', compared],
        ['one candidate per run, cached K/V', falcon.oneByOneMs],
        ['one forward pass per candidate (extrapolated from 5)', falcon.forwardEachMs],
        ...peerRows(falcon),
      ].map(([how, t]) => [String(how), ms(Number(t)), (Number(t) / compared).toFixed(2)]),
    ),
    '',
    falcon.peers.length === 0
      ? 'PyTorch was not measured in this run.'
      : `PyTorch ${falcon.peers[0]?.torch} on the same ${falcon.threads} threads, in turns with ours: medians of each round, the best round of either side. Ours by round: ${falcon.comparedMs.map(ms).join(', ')} ms; PyTorch float32: ${falcon.peers.map((peer) => ms(Math.min(...Object.values(peer.fp32.scoreMs)))).join(', ')} ms.`,
    '',
    '## Peak memory, MiB (one worker, one thread)',
    '',
    ...memoryTable(memory),
    '',
    `## HTTP, demo model (KuaiRand), loopback`,
    '',
    `One cached user, ${http.candidates} candidates, one connection, ${http.single.count} requests: p50 ${http.single.p50.toFixed(2)} ms, p95 ${http.single.p95.toFixed(2)} ms, p99 ${http.single.p99.toFixed(2)} ms.`,
    '',
    `All sample requests: ${http.capacityPerSecond.toFixed(0)} per second from 8 connections; open loop at ${http.open.offeredPerSecond.toFixed(0)} per second (Poisson, ${http.open.count} answered, ${http.open.failed} failed): p50 ${http.open.p50.toFixed(2)} ms, p99 ${http.open.p99.toFixed(2)} ms; event-loop delay p99 ${http.open.eventLoopP99Ms.toFixed(1)} ms (an idle loop reads 10 to 11: the timer's own period). Client and server share the cores.`,
    '',
  ]
  return lines.join('\n')
}

function peerRows({ peers }: FalconResult): [string, number][] {
  if (peers.length === 0) return []
  return (['fp32', 'bf16'] as const).map((precision) => {
    const [best] = bestPeer(peers, precision).sort((a, b) => a.ms - b.ms)
    return [
      `PyTorch ${precision} on cached K/V, its best micro-batch (${best?.x})`,
      best?.ms ?? Number.NaN,
    ]
  })
}

/** Per micro-batch size the peer's best round. */
function bestPeer(peers: readonly PeerResult[], precision: 'fp32' | 'bf16'): Point[] {
  const sizes = Object.keys(peers[0]?.[precision].scoreMs ?? {})
  return sizes.map((size) => ({
    x: Number(size),
    ms: Math.min(...peers.map((peer) => peer[precision].scoreMs[size] ?? Number.NaN)),
  }))
}

function memoryTable(memory: readonly MemoryPoint[]): string[] {
  const sizes = [...new Set(memory.map(({ m }) => m))]
  const batches = [...new Set(memory.map(({ b }) => b))]
  return table(
    ['b', ...sizes.map((m) => `m = ${m}`)],
    batches.map((b) => [
      String(b),
      ...sizes.map((m) => String(memory.find((p) => p.m === m && p.b === b)?.peakMiB ?? '')),
    ]),
  )
}
