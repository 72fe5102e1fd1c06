import { count, figure } from '../markdown.js'
import { equalitySection, growthSection, httpSection } from './report-checks.js'
import { kernelSection } from './report-kernels.js'
import { rankSection, scoreSection, throughputSection } from './report-latency.js'
import { profileSection } from './report-profile.js'
import { keepSection, workSection } from './report-work.js'
import type { PartialResult } from './result.js'

/** gpu.md; a section that the result lacks is left out. */
export function page(result: PartialResult): string {
  const { latency, equality, growth, http, profiles, peer } = result
  const { httpWithKernels, growthWithKernels } = result
  const from = (section: string, lines: readonly string[]) => withCommit(result, section, lines)
  return [
    ...head(result),
    ...(latency === undefined
      ? []
      : [
          ...scoreSection(latency, peer),
          '![score against candidates](gpu-score-by-candidates.svg)',
          '',
          ...rankSection(latency, peer),
          ...kernelSection(latency, peer),
          ...throughputSection(latency, peer),
          ...workSection(latency, peer),
          ...keepSection(latency, peer),
        ]),
    ...(http === undefined ? [] : from('http', httpSection(http))),
    ...(httpWithKernels === undefined
      ? []
      : from('http', httpSection(httpWithKernels, ', with kernels'))),
    ...(equality === undefined ? [] : from('equality', equalitySection(equality))),
    ...(growth === undefined ? [] : from('growth', growthSection(growth))),
    ...(growthWithKernels === undefined
      ? []
      : from('growth', growthSection(growthWithKernels, ', with kernels'))),
    ...(profiles === undefined
      ? []
      : from('profile', profileSection(profiles, latency ?? [], peer?.ceilings.copyGBs))),
  ].join('\n')
}

/** A section of another commit than the page's says so below its heading. */
function withCommit(
  { machine, commits }: PartialResult,
  section: string,
  lines: readonly string[],
): string[] {
  const commit = commits?.[section]
  if (commit === undefined || commit === machine.commit) return [...lines]
  const [heading = '', ...rest] = lines
  return [heading, '', `Of another run, commit ${commit}.`, ...rest]
}

function head({ machine, peer }: PartialResult): string[] {
  const { ceilings } = peer ?? {}
  return [
    '# GPU results',
    '',
    'Written by the commands below; do not edit.',
    '',
    `* ${machine.gpu}, driver ${machine.driver}; ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}, commit ${machine.commit}, ${machine.date}`,
    ...(peer === undefined
      ? []
      : [`* Peer: PyTorch ${peer.machine.torch}, Triton ${peer.machine.triton}`]),
    ...(ceilings === undefined
      ? []
      : [
          `* This GPU, measured: ${figure(ceilings.fp16Tflops)} TFLOP/s in fp16 (product of 8,192 squares), copies of ${measured(ceilings.copyGBs)} GB/s on it (reads and writes), ${figure(ceilings.h2dGBs)} GB/s to it, ${figure(ceilings.d2hGBs)} GB/s from it`,
        ]),
    '* Shapes, fp16, random weights: paper (3 layers, width 512, 8 heads, 2,048 tokens), nvidia (8 layers, width 1,024, 4 heads, 4,096 tokens), mlperf (5 layers, width 512, 4 heads, 7,000 tokens), all with the layer that Meta\'s kernels compute; "paper, rab" is the paper\'s own layer with relative bias; demo is the trained demo model',
    '* Engines: "capi, graphs" replays CUDA graphs (the default on a GPU), "capi, plain" launches kernel by kernel, "node" is onnxruntime-node in a worker',
    '',
    "The GPU machine needs no network. On one with network: `npm ci`, onnxruntime-node's CUDA libraries by its install script, `npm run build`; copy the folder, and set `BENCH_COMMIT` where it has no repository. Meta's generative-recommenders lies in PEER, for a Python with PyTorch and Triton; without `--peer` its columns are empty. Then",
    '',
    '    node dist/bench/gpu/run.js --out DIR --bundles BUNDLES --peer PEER --python python3',
    '    node dist/bench/gpu/report.js DIR',
    '',
    '`--only latency,equality,growth,http,profile,peer` runs some of the sections and adds them to DIR/gpu.json. `--kernels DIR` measures the engines "…, kernels" too, over the libraries that model/kernels/cuda/build.sh puts into DIR.',
    '',
  ]
}

const measured = (value: number | undefined) => (value === undefined ? figure(value) : count(value))
