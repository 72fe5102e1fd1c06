// node dist/bench/gpu/report.js [DIR]: gpu.json -> gpu.md and its charts.
import { readFileSync, writeFileSync } from 'node:fs'
import { lineChart } from '../chart.js'
import type { Machine } from '../machine.js'
import type { Difference, Growth } from './checks.js'
import type { GpuHttp } from './http.js'
import type { EngineLatency, LatencyPoint, Timing } from './latency.js'
import type { Profile } from './profile.js'
import { type BenchShape, SHAPES, usefulFlops } from './shapes.js'

export type PeerPoint = {
  readonly shape: string
  readonly what: 'rank' | 'score' | 'encode'
  readonly m: number
  readonly batch: number
  readonly mode: 'eager' | 'graph'
  readonly route?: string
  readonly ms: number
  readonly ioMs?: number
  readonly scoreInPlaceMs?: number
  readonly scoreInPlaceIoMs?: number
  readonly maxDiff?: number | null
}

export type Peer = {
  readonly machine: { readonly torch: string; readonly triton: string }
  readonly ceilings: {
    readonly fp16Tflops: number
    readonly copyGBs: number
    readonly h2dGBs: number
    readonly d2hGBs: number
  }
  readonly results: readonly PeerPoint[]
}

export type GpuResult = {
  readonly machine: Machine & { readonly gpu: string; readonly driver: string }
  readonly latency: readonly {
    readonly shape: string
    readonly model: string
    readonly engines: readonly EngineLatency[]
  }[]
  readonly equality: { readonly fp16: readonly Difference[]; readonly fp32: readonly Difference[] }
  readonly growth: Growth
  readonly http: GpuHttp
  readonly profiles: readonly (Profile & { readonly model: string })[]
  readonly peer: Peer
}

/** MLPerf Inference v6.0, DLRMv3, requests per second of one B200: what NVIDIA's submissions give. */
const B200_DLRM = '1,250-1,630'

const folder = process.argv[2] ?? 'bench/results'
const result: GpuResult = JSON.parse(readFileSync(`${folder}/gpu.json`, 'utf8'))
