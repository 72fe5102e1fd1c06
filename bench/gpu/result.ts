// The form of gpu.json and how its figures are found.
import type { Machine } from '../machine.js'
import type { Difference, Growth } from './checks.js'
import type { GpuHttp } from './http.js'
import type { EngineLatency, LatencyPoint } from './latency.js'
import type { Profile } from './profile.js'

/** Milliseconds by bench/gpu/peers/meta_triton.py, which says what each field includes. */
export type PeerPoint = {
  readonly shape: string
  readonly what: 'rank' | 'score' | 'encode'
  readonly m: number
  readonly batch: number
  /** Absent, with `ms`, where the point failed or the budget was spent. */
  readonly mode?: 'eager' | 'graph'
  readonly route?: string
  readonly ms?: number
  readonly ioMs?: number
  readonly scoreInPlaceMs?: number
  readonly scoreInPlaceIoMs?: number
  readonly maxDiff?: number | null
}

export type Peer = {
  readonly machine: { readonly torch: string; readonly triton: string }
  readonly ceilings: {
    readonly fp16Tflops?: number
    readonly copyGBs?: number
    readonly h2dGBs?: number
    readonly d2hGBs?: number
  }
  readonly results: readonly PeerPoint[]
}

export type ShapeLatency = {
  readonly shape: string
  readonly model: string
  readonly engines: readonly EngineLatency[]
}

export type GpuResult = {
  /** Of the last call. */
  readonly machine: Machine & { readonly gpu: string; readonly driver: string }
  /** What each section was measured on: a host may not be free for the whole. */
  readonly commits: { readonly [section: string]: string }
  readonly latency: readonly ShapeLatency[]
  readonly equality: { readonly fp16: readonly Difference[]; readonly fp32: readonly Difference[] }
  readonly growth: Growth
  readonly growthWithKernels: Growth
  readonly http: GpuHttp
  readonly httpWithKernels: GpuHttp
  readonly profiles: readonly (Profile & { readonly model: string })[]
  readonly peer: Peer
}

/** A run writes its sections one by one and may lack some. */
export type PartialResult = Pick<GpuResult, 'machine'> & Partial<GpuResult>

/** The engine that the service takes on a GPU. */
export const OURS = 'capi, graphs'

export function engineOf({ engines }: ShapeLatency, name: string): EngineLatency | undefined {
  return engines.find(({ engine }) => engine === name)
}

export function pointOf(shape: ShapeLatency, engine: string, m: number): LatencyPoint | undefined {
  return engineOf(shape, engine)?.points.find((point) => point.m === m)
}

/** Every shape with each of its m. */
export function allPoints(latency: readonly ShapeLatency[]): { shape: ShapeLatency; m: number }[] {
  return latency.flatMap((shape) => (shape.engines[0]?.points ?? []).map(({ m }) => ({ shape, m })))
}

export type PeerQuery = {
  readonly shape: string
  readonly what: PeerPoint['what']
  readonly m: number
  readonly batch?: number
  readonly route: 'plain' | 'tma'
}

/** The peer's figures under a CUDA graph, its fastest mode. */
export function peerPoint(
  peer: Peer | undefined,
  { shape, what, m, batch = 1, route }: PeerQuery,
): PeerPoint | undefined {
  return peer?.results.find(
    (point) =>
      point.mode === 'graph' &&
      point.shape === shape &&
      point.what === what &&
      point.m === m &&
      point.batch === batch &&
      point.route === route,
  )
}
