import { writeFileSync } from 'node:fs'
import { KV_CODECS } from '../model/engine/codec/graphs.js'
import { breakEven } from './break-even.js'
import { lineChart, type Series } from './chart.js'
import type { CodecsResult } from './kv-codecs.js'
import type { EventLoopPoint } from './kv-event-loop.js'
import type { Arm, LatencyPoint, LatencyResult } from './kv-latency.js'
import type { ReadersResult } from './kv-readers.js'
import type { StagesResult } from './kv-stages.js'
import type { Machine } from './machine.js'
import { count, figure, table } from './markdown.js'

export type KvResult = {
  readonly machine: Machine
  /** Version of redis-server. */
  readonly redis: string
  readonly latency: readonly LatencyResult[]
  readonly stages: StagesResult
  readonly codecs: CodecsResult
  readonly readers: ReadersResult
  readonly eventLoop: readonly EventLoopPoint[]
  /** How long it all took. */
  readonly seconds: number
}

/** What the service writes unless told otherwise. */
const CODEC = 'fp16'

const ARMS: readonly (readonly [Arm, string])[] = [
  ['tier1', 'tier 1 hit'],
  ['append', 'tier 1 and one event'],
  ['fp16', 'tier 2 hit, fp16'],
  ['fp32', 'tier 2 hit, fp32'],
  ['int8', 'tier 2 hit, int8'],
  ['bf16', 'tier 2 hit, bf16'],
  ['fp16+append', 'tier 2, fp16, and one event'],
  ['fp32+append', 'tier 2, fp32, and one event'],
  ['int8+append', 'tier 2, int8, and one event'],
  ['bf16+append', 'tier 2, bf16, and one event'],
  ['miss', 'miss (prefill)'],
]
const CHARTED: readonly Arm[] = ['tier1', 'append', 'fp16', 'fp16+append', 'miss']

/** Writes kv.md and its charts into `out`. */
export function writeKvReport(result: KvResult, out: string): void {
  const { machine, latency } = result
  const subtitle = `${machine.cpu}, ${machine.cores} cores, Node ${machine.node}, Redis ${result.redis}, commit ${machine.commit}`
  const [largest] = latency
  if (largest !== undefined) {
    const svg = lineChart({
      title: 'K/V of a history: what it takes to have it (paper shape)',
      subtitle,
      x: { label: 'history tokens', log: true },
      y: { label: 'milliseconds', log: true },
      series: CHARTED.map((arm) => ({
        name: ARMS.find(([name]) => name === arm)?.[1] ?? arm,
        points: largest.points.map(({ tokens, ms }) => [tokens, ms[arm]] as const),
      })),
    })
    writeFileSync(`${out}/kv-latency.svg`, svg)
  }
  const breakEvenChart = lineChart({
    title: 'Fetched from Redis or computed: where it breaks even',
    subtitle,
    x: { label: 'history tokens', log: true },
    y: { label: 'milliseconds', log: true },
    series: latency.flatMap(breakEvenSeries),
  })
  writeFileSync(`${out}/kv-break-even.svg`, breakEvenChart)
  writeFileSync(`${out}/kv.md`, markdown(result))
}

function breakEvenSeries({ points }: LatencyResult, model: number): Series[] {
  const crossing = breakEven(points.map(costs))
  const short = model === 0 ? 'paper shape' : 'demo'
  const line = (name: string, arm: Arm, dashed: boolean): Series => ({
    name: `${short}, ${name}`,
    points: points.map(({ tokens, ms }) => [tokens, ms[arm]] as const),
    dashed,
  })
  const lines = [line('fetched', CODEC, false), line('computed', 'miss', true)]
  if (crossing === undefined) return lines
  const { x, y } = crossing
  return [...lines, { name: `equal at ${Math.round(x)}`, points: [[x, y]], marked: true }]
}

function costs({ tokens, ms }: LatencyPoint) {
  return { x: tokens, fetch: ms[CODEC], compute: ms.miss }
}

function markdown(result: KvResult): string {
  const { machine, latency } = result
  const threads = latency[0]?.threads
  return [
    '# K/V in this process and in Redis',
    '',
    'Written by `npm run bench:kv`; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}; the run took ${result.seconds} s`,
    `* Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}, Redis ${result.redis} on 127.0.0.1 on the same cores, commit ${machine.commit}, ${machine.date}`,
    `* Models: the paper shape (3 layers, width 512, 8 heads, 2,048 tokens, random weights) and the demo, float32; 1 worker x ${threads} threads`,
    '',
    ...latency.flatMap(latencyLines),
    '![latency against history](kv-latency.svg)',
    '',
    ...breakEvenLines(latency),
    ...stageLines(result.stages),
    ...codecLines(result.codecs),
    ...readerLines(result.readers),
    ...eventLoopLines(result.eventLoop),
  ].join('\n')
}

function latencyLines({ model, rounds, points }: LatencyResult): string[] {
  const longest = points.at(-1)
  const ratio = (longest?.ms.miss ?? Number.NaN) / (longest?.ms[CODEC] ?? Number.NaN)
  return [
    `## To have the K/V of a history: ${model}`,
    '',
    `From the call to a handle that candidates can be scored on, milliseconds; medians of ${rounds} rounds in which the rows take turns. An event is 2 tokens.`,
    '',
    ...table(
      ['what', ...points.map(({ tokens }) => `${count(tokens)} tokens`)],
      ARMS.map(([arm, what]) => [what, ...points.map(({ ms }) => figure(ms[arm]))]),
    ),
    '',
    `At ${count(longest?.tokens ?? 0)} tokens a tier 2 hit (${CODEC}) is ${figure(ratio)} times cheaper than a prefill.`,
    '',
  ]
}

function breakEvenLines(latency: readonly LatencyResult[]): string[] {
  return [
    '## Break-even',
    '',
    ...latency.map(({ model, points }) => {
      const crossing = breakEven(points.map(costs))
      if (crossing !== undefined) {
        return `* ${model}: fetching (${CODEC}) and computing cost the same, ${figure(crossing.y)} ms, at ${Math.round(crossing.x)} tokens.`
      }
      const [first] = points
      const isFetch = first !== undefined && first.ms[CODEC] < first.ms.miss
      return `* ${model}: ${isFetch ? 'fetching' : 'computing'} is cheaper at every length.`
    }),
    '',
    '![break-even](kv-break-even.svg)',
    '',
  ]
}

function stageLines({ tokens, bytes, stages, chunks }: StagesResult): string[] {
  const whats = [...new Set(stages.map(({ what }) => what))]
  const ms = (what: string, codec: string) =>
    figure(stages.find((stage) => stage.what === what && stage.codec === codec)?.ms)
  const sizes = [...new Set(chunks.map(({ chunkBytes }) => chunkBytes))]
  const flights = [...new Set(chunks.map(({ inFlight }) => inFlight))]
  const chunkMs = (size: number, flight: number) =>
    figure(chunks.find((c) => c.chunkBytes === size && c.inFlight === flight)?.ms)
  return [
    `## Where a tier 2 hit goes: ${count(tokens)} tokens of the paper shape`,
    '',
    'Each stage alone, milliseconds; medians, in turns.',
    '',
    ...table(
      ['stage', ...KV_CODECS.map((codec) => `${codec}, ${figure(bytes[codec] / 1e6)} MB`)],
      whats.map((what) => [what, ...KV_CODECS.map((codec) => ms(what, codec))]),
    ),
    '',
    'Receiving alone (fp16) by the bytes that one command asks for and the commands on their way:',
    '',
    ...table(
      ['bytes', ...flights.map((flight) => `${flight} on the way`)],
      sizes.map((size) => [`2^${Math.log2(size)}`, ...flights.map((f) => chunkMs(size, f))]),
    ),
    '',
  ]
}

function codecLines({ bytes, errors }: CodecsResult): string[] {
  return [
    '## Codecs',
    '',
    'Bytes of a user at the longest history; an append is one event of 2 tokens.',
    '',
    ...table(
      [
        'model',
        'codec',
        'bytes per token, by shape',
        'stored per token',
        "Redis's memory per token",
        'append writes',
        'append, bytes received by Redis',
      ],
      bytes.map((b) => [
        b.model,
        b.codec,
        count(b.tokenBytes),
        count(b.storedBytes / b.tokens),
        count(b.memoryBytes / b.tokens),
        `${b.append.pages} page and head, ${count(b.append.bytes)} bytes`,
        count(b.append.receivedBytes),
      ]),
    ),
    '',
    'Logits on K/V that went through the codec, against logits on the same K/V as it was: all sample requests of the demo, random ones of the paper shape.',
    '',
    ...table(
      ['model', 'codec', 'requests', 'logits', 'largest difference', 'mean', 'largest logit'],
      errors.map((e) => [
        e.model,
        e.codec,
        count(e.requests),
        count(e.logits),
        e.maxDifference.toExponential(1),
        e.meanDifference.toExponential(1),
        figure(e.maxLogit),
      ]),
    ),
    '',
  ]
}

function readerLines(readers: ReadersResult): string[] {
  const both = ({ p50Ms, p99Ms }: { p50Ms: number; p99Ms: number }) =>
    `${figure(p50Ms)} / ${figure(p99Ms)}`
  return [
    `## Readers: ${count(readers.tokens)} tokens of the paper shape, ${readers.codec}`,
    '',
    'Users that are fetched again and again, each by a caller of its own, from one thread.',
    '',
    ...table(
      ['connections', 'users at a time', 'fetches per second', 'p50 / p99 ms'],
      readers.throughput.map((point) => [
        String(point.connections),
        String(point.users),
        figure(point.fetchesPerSecond),
        both(point),
      ]),
    ),
    '',
    `A user of ${readers.smallTokens} tokens, alone and while ${readers.largeUsers} of ${count(readers.tokens)} are fetched, p50 / p99 ms:`,
    '',
    ...table(
      ['connections', 'alone', 'behind large users'],
      readers.small.map(({ connections, alone, behind }) => [
        String(connections),
        both(alone),
        both(behind),
      ]),
    ),
    '',
    'Heads per second over one connection, without and with autopipelining:',
    '',
    ...table(
      ['callers', 'plain', 'autopipelined', 'ratio'],
      readers.heads.map(({ callers, plain, autoPipelined }) => [
        String(callers),
        count(plain),
        count(autoPipelined),
        (autoPipelined / plain).toFixed(2),
      ]),
    ),
    '',
  ]
}

function eventLoopLines(points: readonly EventLoopPoint[]): string[] {
  return [
    "## The calling thread's event loop during tier 2 hits",
    '',
    'Delay of a timer of 1 ms, that period included, while users of the longest history are fetched (fp16) and imported one after the other; and the processor time that one hit takes of that thread.',
    '',
    ...table(
      ['tier 2', 'p50 ms', 'p99 ms', 'largest ms', 'processor time per hit, ms'],
      points.map((point) => [
        { idle: 'no hits', thread: 'in its own thread', 'in-thread': 'in the calling thread' }[
          point.where
        ],
        figure(point.p50Ms),
        figure(point.p99Ms),
        figure(point.maxMs),
        figure(point.cpuMsPerHit),
      ]),
    ),
    '',
  ]
}
