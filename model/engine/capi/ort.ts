import koffi from 'koffi'
import { RankError } from '../../errors.js'
import { callAsync, loadLibrary } from './native.js'
import { OrtError } from './ort-error.js'

/** Where a model lies: the path of its file, or its bytes. */
export type Graph = string | Uint8Array

/** An address in this process; 0n is null. */
export type Pointer = bigint
/** Memory that C reads or writes: an address, or an array's own. The caller keeps the array alive. */
export type Memory = Pointer | NodeJS.ArrayBufferView

type Entry<Kind, Args extends readonly unknown[]> = {
  readonly kind: Kind
  /** Place in struct OrtApi (onnxruntime_c_api.h), which only ever grows at its end. */
  readonly index: number
  readonly params: readonly string[]
  readonly args?: Args
}
const entry =
  <Kind extends string>(kind: Kind) =>
  <Args extends readonly unknown[]>(index: number, ...params: string[]): Entry<Kind, Args> => ({
    kind,
    index,
    params,
  })
/** Status out of `f(…, void** result)`. */
const gives = entry('gives')
/** Status out of `f(…)`. */
const does = entry('does')
/** `void f(pointer)`. */
const frees = entry('frees')

const P = 'void*'
const TEXT = 'const char*'
const SIZE = 'size_t'

/** The entries in use. Arguments are C's own, without the result that `gives` adds. */
const ENTRIES = {
  CreateEnv: gives<[severity: number, logId: string]>(3, 'int', TEXT),
  CreateSessionOptions: gives<[]>(10),
  CreateRunOptions: gives<[]>(39),
  CreateMemoryInfo: gives<[name: string, allocator: number, device: number, type: number]>(
    68,
    TEXT,
    'int',
    'int',
    'int',
  ),
  CreateTensorWithDataAsOrtValue: gives<
    [info: Pointer, data: Memory, bytes: number, dims: Memory, rank: number, type: number]
  >(49, P, P, SIZE, P, SIZE, 'int'),
  GetAllocatorWithDefaultOptions: gives<[]>(78),
  AllocatorAlloc: gives<[allocator: Pointer, bytes: number]>(75, P, SIZE),
  CreatePrepackedWeightsContainer: gives<[]>(166),
  CreateCUDAProviderOptions: gives<[]>(205),
  SessionGetInputCount: gives<[session: Pointer]>(30, P),
  SessionGetOutputCount: gives<[session: Pointer]>(31, P),
  SessionGetInputTypeInfo: gives<[session: Pointer, i: number]>(33, P, SIZE),
  SessionGetOutputTypeInfo: gives<[session: Pointer, i: number]>(34, P, SIZE),
  SessionGetInputName: gives<[session: Pointer, i: number, allocator: Pointer]>(36, P, SIZE, P),
  SessionGetOutputName: gives<[session: Pointer, i: number, allocator: Pointer]>(37, P, SIZE, P),
  CastTypeInfoToTensorInfo: gives<[typeInfo: Pointer]>(55, P),
  GetTensorElementType: gives<[tensorInfo: Pointer]>(60, P),
  GetDimensionsCount: gives<[tensorInfo: Pointer]>(61, P),
  EpAssignedSubgraph_GetEpName: gives<[subgraph: Pointer]>(408, P),
  EpAssignedNode_GetName: gives<[node: Pointer]>(410, P),
  EpAssignedNode_GetOperatorType: gives<[node: Pointer]>(412, P),
  GetDimensions: does<[tensorInfo: Pointer, dims: Memory, rank: number]>(62, P, P, SIZE),
  GetSymbolicDimensions: does<[tensorInfo: Pointer, names: Memory, rank: number]>(63, P, P, SIZE),
  DisableMemPattern: does<[options: Pointer]>(17, P),
  SetSessionLogSeverityLevel: does<[options: Pointer, severity: number]>(22, P, 'int'),
  SetIntraOpNumThreads: does<[options: Pointer, threads: number]>(24, P, 'int'),
  SetInterOpNumThreads: does<[options: Pointer, threads: number]>(25, P, 'int'),
  AddRunConfigEntry: does<[runOptions: Pointer, key: string, value: string]>(165, P, TEXT, TEXT),
  AddSessionConfigEntry: does<[options: Pointer, key: string, value: string]>(130, P, TEXT, TEXT),
  AddInitializer: does<[options: Pointer, name: string, value: Pointer]>(150, P, TEXT, P),
  UpdateCUDAProviderOptions: does<
    [options: Pointer, keys: readonly string[], values: readonly string[], count: number]
  >(206, P, 'const char**', 'const char**', SIZE),
  UpdateCUDAProviderOptionsWithValue: does<[options: Pointer, key: string, value: Pointer]>(
    263,
    P,
    TEXT,
    P,
  ),
  SessionOptionsAppendExecutionProvider_CUDA_V2: does<[options: Pointer, cuda: Pointer]>(204, P, P),
  RegisterCustomOpsLibrary_V2: does<[options: Pointer, path: string]>(228, P, TEXT),
  RunOptionsSetTerminate: does<[runOptions: Pointer]>(46, P),
  RunOptionsUnsetTerminate: does<[runOptions: Pointer]>(47, P),
  Session_GetEpGraphAssignmentInfo: does<[session: Pointer, subgraphs: Memory, count: Memory]>(
    407,
    P,
    P,
    P,
  ),
  EpAssignedSubgraph_GetNodes: does<[subgraph: Pointer, nodes: Memory, count: Memory]>(
    409,
    P,
    P,
    P,
  ),
  AllocatorFree: does<[allocator: Pointer, memory: Pointer]>(76, P, P),
  ReleaseEnv: frees(92),
  ReleaseMemoryInfo: frees(94),
  ReleaseValue: frees(96),
  ReleaseRunOptions: frees(97),
  ReleaseTypeInfo: frees(98),
  ReleaseSessionOptions: frees(100),
  ReleasePrepackedWeightsContainer: frees(167),
  ReleaseCUDAProviderOptions: frees(208),
}

type Entries = typeof ENTRIES
type Call<E> =
  E extends Entry<'gives', infer Args>
    ? (...args: Args) => Pointer
    : E extends Entry<'does', infer Args>
      ? (...args: Args) => void
      : (pointer: Pointer) => void
type Calls = { readonly [Name in keyof Entries]: Call<Entries[Name]> }

/** A session's arguments of one run: names and OrtValues as arrays of pointers. */
export type RunArguments = {
  readonly session: Pointer
  readonly options: Pointer
  readonly inputNames: Memory
  readonly inputs: Memory
  readonly inputCount: number
  readonly outputNames: Memory
  /** All set: results are written into the values' own memory. */
  readonly outputs: Memory
  readonly outputCount: number
}

/** ONNX Runtime's C API, one function per entry; a failed one throws OrtError. */
export type Ort = Calls & {
  readonly version: string
  /**
   * Runs on a thread of libuv's pool, or of run-threads.ts; resolves when the outputs are written. What the
   * arguments point to stays until then.
   */
  run(args: RunArguments): Promise<void>
  /** The same on the calling thread, which it blocks. */
  runNow(args: RunArguments): void
  /**
   * A session of a file or of a graph in memory, with a container of packed weights or 0n, off the
   * calling thread: it takes up to seconds.
   */
  createSession(env: Pointer, graph: Graph, options: Pointer, container: Pointer): Promise<Pointer>
  /** The same on the calling thread, for another one, which adopts it. */
  createSessionNow(env: Pointer, graph: Graph, options: Pointer, container: Pointer): Pointer
  /** Off the calling thread: what the session packed goes page by page. */
  releaseSession(session: Pointer): Promise<void>
  /** Counts objects that were made elsewhere and end here; fewer than none: that ended elsewhere. */
  adopt(objects?: number): void
  /** Objects created and not released, of all kinds: what a leak test watches. */
  live(): number
}

/** Of onnxruntime_c_api.h: the newest entry in use came with it. */
const API_VERSION = 24
/** The table was checked against these; later ones only add entries behind it. */
const OLDEST_MINOR = 29

let loaded: { readonly path: string; readonly ort: Ort } | undefined

/**
 * The C API of the library at `path`, loaded once per process.
 * @throws {RankError} ENGINE_UNAVAILABLE when it does not load or is another version
 */
export function loadOrt(path: string): Ort {
  if (loaded?.path !== path) loaded = { path, ort: bind(path) }
  return loaded.ort
}

function bind(path: string): Ort {
  const { table, version } = openTable(path)
  let live = 0
  const scratch = new BigUint64Array(1)
  const native = (index: number, result: string, params: readonly string[]) => {
    const address = table[index]
    if (address === undefined) throw new Error(`no entry ${index} in OrtApi`)
    return koffi.decode(address, koffi.proto(result, [...params]))
  }
  const message = native(2, TEXT, [P])
  const errorCode = native(1, 'int', [P])
  const releaseStatus = native(93, 'void', [P])
  const check = (status: Pointer | null) => {
    if (status === null || status === 0n) return
    const error = new OrtError(errorCode(status), String(message(status)))
    releaseStatus(status)
    throw error
  }
  const owns = (name: string) => /^(Create|AllocatorAlloc|Session.*(TypeInfo|Name)$)/.test(name)
  const calls = Object.entries<Entry<string, readonly unknown[]>>(ENTRIES).map(([name, found]) => {
    const { kind, index, params } = found
    if (kind === 'frees') {
      const free = native(index, 'void', [P])
      return [
        name,
        (pointer: Pointer) => {
          live--
          free(pointer)
        },
      ]
    }
    if (kind === 'does') {
      const call = native(index, P, params)
      const frees = name === 'AllocatorFree' ? 1 : 0
      return [
        name,
        (...args: unknown[]) => {
          check(call(...args))
          live -= frees
        },
      ]
    }
    const call = native(index, P, [...params, P])
    const adds = owns(name) ? 1 : 0
    return [
      name,
      (...args: unknown[]) => {
        scratch[0] = 0n
        check(call(...args, scratch))
        live += adds
        return scratch[0]
      },
    ]
  })
  const run = native(9, P, [P, P, P, P, SIZE, P, SIZE, P])
  // CreateSessionWithPrepackedWeightsContainer, and the same FromArray.
  const createFromPath = native(168, P, [P, TEXT, P, P, P])
  const createFromBytes = native(169, P, [P, P, SIZE, P, P, P])
  const releaseSession = native(95, 'void', [P])
  const creation = (graph: Graph) =>
    typeof graph === 'string'
      ? { create: createFromPath, model: [graph] }
      : { create: createFromBytes, model: [graph, graph.byteLength] }
  // The mapped type above is what the table says; this is the one place that takes it on trust.
  const typed = Object.fromEntries(calls) as Calls
  return {
    ...typed,
    version,
    async run(args) {
      check(await callAsync(run, ...runArguments(args)))
    },
    async createSession(env, graph, options, container) {
      const session = new BigUint64Array(1)
      const { create, model } = creation(graph)
      check(await callAsync(create, env, ...model, options, container, session))
      live++
      return session[0] ?? 0n
    },
    runNow(args) {
      check(run(...runArguments(args)))
    },
    createSessionNow(env, graph, options, container) {
      const session = new BigUint64Array(1)
      const { create, model } = creation(graph)
      check(create(env, ...model, options, container, session))
      return session[0] ?? 0n
    },
    async releaseSession(session) {
      live--
      await callAsync(releaseSession, session)
    },
    adopt(objects = 1) {
      live += objects
    },
    live: () => live,
  }
}

/** In the order of OrtApi's Run. */
function runArguments(args: RunArguments): unknown[] {
  const { session, options, inputNames, inputs, inputCount } = args
  const { outputNames, outputs, outputCount } = args
  return [session, options, inputNames, inputs, inputCount, outputNames, outputCount, outputs]
}

function openTable(path: string): { table: readonly bigint[]; version: string } {
  try {
    const base = loadLibrary(path).func('OrtGetApiBase', P, [])()
    const [getApi, getVersion] = koffi.decode(base, koffi.array(P, 2))
    const version = String(koffi.call(getVersion, koffi.proto(TEXT, [])))
    const [major, minor = 0] = version.split('.').map(Number)
    if (major !== 1 || minor < OLDEST_MINOR) {
      throw new Error(`expected ONNX Runtime 1.${OLDEST_MINOR} or later, got ${version}`)
    }
    const api = koffi.call(getApi, koffi.proto(P, ['uint32_t']), API_VERSION)
    const length = 1 + Math.max(...Object.values(ENTRIES).map(({ index }) => index))
    return { table: koffi.decode(api, koffi.array(P, length)), version }
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('ENGINE_UNAVAILABLE', `${path} does not load: ${why}`, { cause })
  }
}
