// The page's part on single kernels.
import { count, figure, table } from '../markdown.js'
import { type Kernel, PROFILED_RUNS, type Profile } from './profile.js'
import type { GpuResult, ShapeLatency } from './result.js'

const SHOWN = 8

/** By what the names of cuBLAS's, CUTLASS's, cuDNN's, ONNX Runtime's and our own kernels begin or end with. */
const KINDS = {
  'matrix products': /nvjet|gemm|Kernel2|cutlass|xmma|^(linear|logits|attention)$/i,
  elementwise: /ElementWise|op_tensor/i,
  'norms and sums': /Norm|reduce|^(norm|gate)$/,
  'moves and fills': /Split|Concat|Gather|Scatter|Slice|Transpose|Pad|Fill|Range|^embed$/,
} as const

export type KernelKind = keyof typeof KINDS | 'other'
const ALL_KINDS: readonly KernelKind[] = [
  'matrix products',
  'elementwise',
  'norms and sums',
  'moves and fills',
  'other',
]

/** The first kind whose pattern the name has. */
export function kindOf(name: string): KernelKind {
  return ALL_KINDS.find((kind) => kind !== 'other' && KINDS[kind].test(name)) ?? 'other'
}

/** Microseconds of each kind. */
export function timeByKind(kernels: readonly Kernel[]): Map<KernelKind, number> {
  const sums = new Map(ALL_KINDS.map((kind) => [kind, 0]))
  for (const { name, us } of kernels) {
    const kind = kindOf(name)
    sums.set(kind, (sums.get(kind) ?? 0) + us)
  }
  return sums
}

const LABELS: Readonly<Record<string, string>> = {
  hit: 'prefill, then score',
  prefill: 'prefill',
  rank: 'one pass',
}

export function profileSection(
  measured: GpuResult['profiles'],
  latency: readonly ShapeLatency[],
  copyGBs: number | undefined,
): string[] {
  const profiles = measured.map((profile) => ({
    ...profile,
    model: latency.find(({ model }) => model === profile.model)?.shape ?? profile.model,
  }))
  return [
    '## Where the time goes',
    '',
    `Nsight Compute around ${PROFILED_RUNS} runs of full history, per run: time on the GPU and bytes of its DRAM by kernel. It runs one kernel at a time and empties the caches before each, so the sums leave out launches and waits and are above what the same kernels take in a row. Kinds go by the kernels' names; "score" is the difference of the two measured sums.${copyGBs === undefined ? '' : ` A plain copy on this GPU moves ${count(copyGBs)} GB/s.`}`,
    '',
    ...table(
      ['model', 'graph', 'us', 'launches', ...ALL_KINDS],
      profiles.flatMap((profile) => {
        const row = summary(profile.model, label(profile), profile)
        const prefill = profiles.find(
          ({ model, graph }) => model === profile.model && graph === 'prefill',
        )
        if (profile.graph !== 'hit' || prefill === undefined) return [row]
        return [row, summary(profile.model, 'score', less(profile, prefill))]
      }),
    ),
    '',
    ...profiles.flatMap((profile) => [
      `### ${profile.model}: ${label(profile)}`,
      '',
      ...kernelTable(profile),
      '',
    ]),
  ]
}

/** A prefill has no candidates. */
function label({ graph, m }: Profile): string {
  const what = LABELS[graph] ?? graph
  return graph === 'prefill' ? what : `${what}, m = ${count(m)}`
}

function summary(
  model: string,
  what: string,
  { us, launches, kernels }: Omit<Profile, 'm' | 'graph'>,
) {
  const kinds = timeByKind(kernels)
  const shares = ALL_KINDS.map((kind) => percent((kinds.get(kind) ?? 0) / us))
  return [model, what, figure(us), count(launches), ...shares]
}

function less(whole: Profile, part: Profile): Omit<Profile, 'm' | 'graph'> {
  const negative = part.kernels.map((kernel) => ({ ...kernel, us: -kernel.us }))
  return {
    us: whole.us - part.us,
    launches: whole.launches - part.launches,
    kernels: [...whole.kernels, ...negative],
  }
}

function kernelTable({ kernels, us, launches }: Profile): string[] {
  const shown = kernels.slice(0, SHOWN)
  const rest = kernels.slice(SHOWN)
  const row = (name: string, { launches, us: time, bytes }: Omit<Kernel, 'name'>) => [
    name,
    count(launches),
    figure(time),
    percent(time / us),
    // Bytes per microsecond are megabytes per second.
    count(bytes / time / 1e3),
  ]
  const sum = (of: readonly Kernel[]): Omit<Kernel, 'name'> => ({
    launches: of.reduce((total, kernel) => total + kernel.launches, 0),
    us: of.reduce((total, kernel) => total + kernel.us, 0),
    bytes: of.reduce((total, kernel) => total + kernel.bytes, 0),
  })
  return table(
    ['kernel', 'launches', 'us', 'share', 'GB/s of DRAM'],
    [
      ...shown.map((kernel) => row(`\`${kernel.name}\` (${kindOf(kernel.name)})`, kernel)),
      ...(rest.length === 0 ? [] : [row(`${rest.length} others`, sum(rest))]),
      row('all', { ...sum(kernels), us, launches }),
    ],
  )
}

const percent = (share: number) => `${(100 * share).toFixed(0)} %`
