import { basename } from 'node:path'
import { barChart } from './chart.js'
import type { KernelPeer, KernelsResult, PeerTimes } from './kernels-cpu.js'
import type { Machine } from './machine.js'
import { figure, table } from './markdown.js'

/** The page on kernels: every figure comes from `result`. */
export function kernelsPage(machine: Machine, result: KernelsResult): string {
  const { calls, ops, logits, peers, threads, library, kvBytes } = result
  const peak = finite(Math.max(...peers.map(({ bf16 }) => bf16.peakTflops)))
  const lines = [
    '# Kernels on a CPU',
    '',
    'Written by `npm run bench:kernels -- --python PYTHON` after `npm run build:kernels`, where PYTHON has PyTorch; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}, commit ${machine.commit}, ${machine.date}`,
    `* Paper shape: 3 layers, width 512, 8 heads of 64, 2,048 tokens, with relative bias; 1 worker x ${threads} threads; medians`,
    `* Kernels: ${basename(library)}, bf16 products; functions: the bodies in the bundle's graphs, float32`,
    peers[0] === undefined
      ? '* PyTorch was not measured in this run.'
      : `* PyTorch ${peers[0].torch}, ${threads} threads, in the same run: the best of ${peers.length} rounds; without relative bias, embedding tables and task head`,
    '',
    '## Calls of the engine, ms',
    '',
    ...table(
      [
        'call',
        'kernels',
        'over float32 K/V',
        'functions',
        'PyTorch bf16',
        'PyTorch float32',
        'kernels / functions',
        'kernels / PyTorch bf16',
      ],
      calls.map(({ what, kernelsMs, float32KvMs, functionsMs }) => {
        const bf16 = peerCall(peers, 'bf16', what)
        return [
          what,
          figure(kernelsMs),
          figure(float32KvMs),
          figure(functionsMs),
          figure(bf16),
          figure(peerCall(peers, 'fp32', what)),
          figure(kernelsMs / functionsMs),
          figure(bf16 === undefined ? undefined : kernelsMs / bf16),
        ]
      }),
    ),
    '',
    `Kernels keep K/V in bf16, as the tiles that they multiply: ${figure(kvBytes.kernels / 1e6)} MB of 2,048 tokens. Over float32 K/V, ${figure(kvBytes.functions / 1e6)} MB, they round and pack it in each run, to the same scores.`,
    '',
    `Logits of 1,024 candidates differ by at most ${logits.difference.toExponential(1)} (the largest is ${logits.largest.toFixed(2)}).`,
    '',
    '![calls](kernels-cpu.svg)',
    '',
    '## One op, ms',
    '',
    'K and V of the history are tiles for the kernels, as the engine keeps them, and float32 for the functions.',
    '',
    ...table(
      ['op', 'kernel', 'function', 'PyTorch bf16', 'PyTorch float32', 'TFLOP/s', 'share of peak'],
      ops.map(({ what, kernelsMs, functionsMs, flop }) => {
        const tflops = flop === 0 ? undefined : flop / kernelsMs / 1e9
        return [
          what,
          figure(kernelsMs),
          figure(functionsMs),
          figure(peerOp(peers, 'bf16', what)),
          figure(peerOp(peers, 'fp32', what)),
          figure(tflops),
          tflops === undefined || peak === undefined
            ? '–'
            : `${((100 * tflops) / peak).toFixed(0)} %`,
        ]
      }),
    ),
    '',
    peak === undefined
      ? ''
      : `Peak: what PyTorch reaches in a bf16 product of 4,096³ in this run, ${peak.toFixed(2)} TFLOP/s.`,
    '',
  ]
  return lines.join('\n')
}

/** The calls that PyTorch was measured in as well. */
export function kernelsChart(machine: Machine, { calls, peers }: KernelsResult): string {
  const of = (pick: (call: KernelsResult['calls'][number]) => number | undefined) =>
    calls.map((call) => pick(call) ?? Number.NaN)
  return barChart({
    title: 'Paper shape, milliseconds per call',
    subtitle: `${machine.cpu}, ${machine.cores} cores, commit ${machine.commit}`,
    categories: calls.map(({ what }) => what),
    series: [
      { name: 'kernels (bf16)', values: of(({ kernelsMs }) => kernelsMs) },
      { name: 'functions (float32)', values: of(({ functionsMs }) => functionsMs) },
      ...(peers.length === 0
        ? []
        : [{ name: 'PyTorch bf16', values: of(({ what }) => peerCall(peers, 'bf16', what)) }]),
    ],
  })
}

type Precision = 'fp32' | 'bf16'

/** The best round; infinite where there was none. */
function best(
  peers: readonly KernelPeer[],
  precision: Precision,
  pick: (times: PeerTimes) => number | undefined,
): number {
  const found = peers.map((peer) => pick(peer[precision]) ?? Number.POSITIVE_INFINITY)
  return Math.min(Number.POSITIVE_INFINITY, ...found)
}

function peerCall(peers: readonly KernelPeer[], precision: Precision, what: string) {
  const m = /^score, m = ([\d,]+),/.exec(what)?.[1]?.replace(',', '')
  const pick = ({ wholeMs, scoreMs, encodeMs }: PeerTimes) => {
    if (what.startsWith('prefill')) return encodeMs
    if (m === undefined) return undefined
    // Whatever micro-batch is best for PyTorch.
    return m === '1024' ? Math.min(wholeMs[m] ?? Number.NaN, ...Object.values(scoreMs)) : wholeMs[m]
  }
  return finite(best(peers, precision, pick))
}

function peerOp(peers: readonly KernelPeer[], precision: Precision, what: string) {
  return finite(best(peers, precision, ({ opMs }) => opMs[what]))
}

function finite(value: number): number | undefined {
  return Number.isFinite(value) ? value : undefined
}
