import { readFileSync } from 'node:fs'
import koffi from 'koffi'
import { RankError } from '../../errors.js'
import type { Bundle, GraphName, RetrievalGraphName } from '../../manifest.js'
import { checkContract, type FoundValue, type GraphSignature } from '../contract.js'
import { type Bf16Kv, bf16Contract, withBf16Kv } from './bf16-kv.js'
import type { Ort, Pointer, RunArguments } from './ort.js'
import { OrtError } from './ort-error.js'
import { checkOnGpu, type Placement } from './placement.js'
import { ELEMENT } from './tensor.js'
import type { SharedWeights } from './weights.js'

const WEIGHTS_FOLDER = 'session.model_external_initializers_file_folder_path'
/** Fatal ones only: what fails is thrown as well, and a terminated run is no error. */
const LOG_LEVEL = 4
const ELEMENT_NAMES = new Map<number, string>(
  Object.entries(ELEMENT).map(([name, code]) => [code, name]),
)

/** One graph, ready to run from any thread. */
export type Session = {
  /** Inputs by name and outputs by name are OrtValues; outputs are written in place. */
  run(inputs: Values, outputs: Values, options: Pointer): Promise<void>
  /** The arguments of a run that another thread will make; they are valid as long as the session. */
  bind(inputs: Values, outputs: Values, options: Pointer): RunArguments
  readonly placement: Placement
  readonly pointer: Pointer
  release(): Promise<void>
}
export type Values = { readonly [name: string]: Pointer }

export type SessionOptions = {
  readonly intraOpThreads: number
  /** Threads wait busily for each other between operators. */
  readonly spin: boolean
  /** Adds the GPU's provider; absent for the CPU. */
  readonly addProvider?: (options: Pointer) => void
}

export type SessionSource = {
  readonly ort: Ort
  readonly env: Pointer
  readonly bundle: Bundle
  readonly weights: SharedWeights
  /** A library of custom ops that replaces the graphs' functions of the same names. */
  readonly kernels: string | undefined
  /** How the graphs take and give K/V for those kernels, where not as their files say. */
  readonly bf16Kv?: Bf16Kv
}

/** ONNX Runtime's environment: needed before anything else of it. The caller releases it last. */
export function createEnv(ort: Ort): Pointer {
  return ort.CreateEnv(LOG_LEVEL, 'peregrine')
}

/**
 * Graphs of the bundle as sessions over one copy of the weights and of what ONNX Runtime packs from
 * them.
 * @throws {RankError} MODEL_CONTRACT when a graph does not load or is not what the manifest says,
 *   ENGINE_UNAVAILABLE when the provider does not
 */
export async function createSessions<Name extends GraphName | RetrievalGraphName>(
  { ort, env, bundle, weights, kernels, bf16Kv }: SessionSource,
  names: readonly Name[],
  options: SessionOptions,
): Promise<{ readonly sessions: Readonly<Record<Name, Session>>; release(): Promise<void> }> {
  const packed = ort.CreatePrepackedWeightsContainer()
  const made: Session[] = []
  const release = async () => {
    for (const session of made) await session.release()
    ort.ReleasePrepackedWeightsContainer(packed)
  }
  const create = async (name: Name): Promise<void> => {
    const contract = bundle.manifest.graphs[name]
    if (contract === undefined) throw new Error(`no graph ${name}`)
    const file = `${bundle.folder}/${contract.file}`
    const sessionOptions = ort.CreateSessionOptions()
    let pointer: Pointer
    try {
      setOptions(ort, sessionOptions, options)
      for (const [name, value] of weights.values) ort.AddInitializer(sessionOptions, name, value)
      if (kernels !== undefined) ort.RegisterCustomOpsLibrary_V2(sessionOptions, kernels)
      // Of weights that are not shared: a graph in memory has no folder.
      if (bf16Kv) ort.AddSessionConfigEntry(sessionOptions, WEIGHTS_FOLDER, bundle.folder)
      const graph = bf16Kv ? withBf16Kv(readFileSync(file), bf16Kv) : file
      pointer = await ort.createSession(env, graph, sessionOptions, packed)
    } catch (cause) {
      if (cause instanceof RankError) throw cause
      const why = cause instanceof Error ? cause.message : String(cause)
      throw new RankError('MODEL_CONTRACT', `${file} does not load: ${why}`, { cause })
    } finally {
      ort.ReleaseSessionOptions(sessionOptions)
    }
    const session = openSession(ort, pointer)
    made.push(session)
    checkContract(file, session, bf16Kv ? bf16Contract(contract, bf16Kv) : contract)
    if (options.addProvider !== undefined) checkOnGpu(file, session.placement)
  }
  try {
    for (const name of names) await create(name)
    // One session per name, in the order of the names.
    const entries = names.map((name, i) => [name, made[i]])
    return { sessions: Object.fromEntries(entries) as Record<Name, Session>, release }
  } catch (error) {
    await release()
    throw error
  }
}

/** A graph in memory, without weights, on one thread of the CPU. The caller releases it. */
export async function openGraph(
  ort: Ort,
  env: Pointer,
  graph: Uint8Array,
  kernels: string | undefined,
): Promise<Session> {
  const options = ort.CreateSessionOptions()
  try {
    setOptions(ort, options, { intraOpThreads: 1, spin: false })
    if (kernels !== undefined) ort.RegisterCustomOpsLibrary_V2(options, kernels)
    return openSession(ort, await ort.createSession(env, graph, options, 0n))
  } finally {
    ort.ReleaseSessionOptions(options)
  }
}

function setOptions(ort: Ort, pointer: Pointer, options: SessionOptions): void {
  ort.SetSessionLogSeverityLevel(pointer, LOG_LEVEL)
  ort.SetIntraOpNumThreads(pointer, options.intraOpThreads)
  ort.SetInterOpNumThreads(pointer, 1)
  // A pattern is kept per input shape, and a service sees every pair of lengths there is.
  ort.DisableMemPattern(pointer)
  const entries = {
    'session.intra_op.allow_spinning': options.spin ? '1' : '0',
    'session.record_ep_graph_assignment_info': '1',
  }
  for (const [key, value] of Object.entries(entries)) ort.AddSessionConfigEntry(pointer, key, value)
  options.addProvider?.(pointer)
}

function openSession(ort: Ort, session: Pointer): Session & GraphSignature {
  const inputs = signature(ort, session, 'Input')
  const outputs = signature(ort, session, 'Output')
  const inputNames = cStrings(inputs.map(({ name }) => name))
  const outputNames = cStrings(outputs.map(({ name }) => name))
  const pick = (values: Values, found: readonly FoundValue[]) =>
    BigUint64Array.from(found, ({ name }) => {
      const value = values[name]
      if (value === undefined) throw new Error(`no value for ${name}`)
      return value
    })
  const bind = (given: Values, results: Values, options: Pointer): RunArguments => ({
    session,
    options,
    inputNames: inputNames.address,
    inputs: pick(given, inputs),
    inputCount: inputs.length,
    outputNames: outputNames.address,
    outputs: pick(results, outputs),
    outputCount: outputs.length,
  })
  return {
    inputs,
    outputs,
    placement: placementOf(ort, session),
    pointer: session,
    bind,
    async run(given: Values, results: Values, options: Pointer) {
      try {
        await ort.run(bind(given, results, options))
      } catch (cause) {
        const why = cause instanceof OrtError ? cause.message : String(cause)
        throw new RankError('MODEL_CONTRACT', `inference failed: ${why}`, { cause })
      }
    },
    release: () => ort.releaseSession(session),
  }
}

function signature(ort: Ort, session: Pointer, side: 'Input' | 'Output'): FoundValue[] {
  const allocator = ort.GetAllocatorWithDefaultOptions()
  const count = Number(ort[`SessionGet${side}Count`](session))
  return Array.from({ length: count }, (_, i) => {
    const text = ort[`SessionGet${side}Name`](session, i, allocator)
    const name = koffi.decode.string(text)
    ort.AllocatorFree(allocator, text)
    const typeInfo = ort[`SessionGet${side}TypeInfo`](session, i)
    try {
      const tensor = ort.CastTypeInfoToTensorInfo(typeInfo)
      if (tensor === 0n) return { name, type: 'no tensor' }
      const code = Number(ort.GetTensorElementType(tensor))
      const rank = Number(ort.GetDimensionsCount(tensor))
      const sizes = new BigInt64Array(Math.max(1, rank))
      const symbols = new BigUint64Array(Math.max(1, rank))
      ort.GetDimensions(tensor, sizes, rank)
      ort.GetSymbolicDimensions(tensor, symbols, rank)
      const dims = Array.from({ length: rank }, (_, d) => {
        const size = Number(sizes[d])
        return size >= 0 ? size : koffi.decode.string(symbols[d])
      })
      return { name, type: ELEMENT_NAMES.get(code) ?? `type ${code}`, dims }
    } finally {
      ort.ReleaseTypeInfo(typeInfo)
    }
  })
}

/** Zero-terminated strings and the array of their addresses, with its own; they live as long as the result. */
function cStrings(texts: readonly string[]) {
  const buffers = texts.map((text) => Buffer.from(`${text}\0`))
  const pointers = BigUint64Array.from(buffers, (buffer) => koffi.address(buffer))
  return { buffers, pointers, address: koffi.address(pointers) }
}

function placementOf(ort: Ort, session: Pointer): Placement {
  const list = (fill: (items: BigUint64Array, count: BigUint64Array) => void): bigint[] => {
    const items = new BigUint64Array(1)
    const count = new BigUint64Array(1)
    fill(items, count)
    const [length] = count
    return length ? koffi.decode(items[0], koffi.array('void*', Number(length))) : []
  }
  const placement = new Map<string, string[]>()
  for (const graph of list((a, n) => ort.Session_GetEpGraphAssignmentInfo(session, a, n))) {
    const provider = koffi.decode.string(ort.EpAssignedSubgraph_GetEpName(graph))
    const operators = list((a, n) => ort.EpAssignedSubgraph_GetNodes(graph, a, n)).map((node) => {
      const type = koffi.decode.string(ort.EpAssignedNode_GetOperatorType(node))
      return `${type} ${koffi.decode.string(ort.EpAssignedNode_GetName(node))}`
    })
    placement.set(provider, [...(placement.get(provider) ?? []), ...operators])
  }
  return placement
}
