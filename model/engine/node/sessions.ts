import { InferenceSession } from 'onnxruntime-node'
import { RankError } from '../../errors.js'
import { type GraphName, hasRetrieval, type RetrievalGraphName } from '../../manifest.js'
import { checkContract, type GraphSignature } from '../contract.js'
import type { WorkerOptions } from './protocol.js'

export type Sessions = Readonly<Record<GraphName, InferenceSession>> & {
  /** Of a retrieval head. */
  readonly encode?: InferenceSession
  readonly retrieve?: InferenceSession
  readonly provider: 'cpu' | 'cuda'
  /** Why `provider` is not the one asked for. */
  readonly warning?: string
}

/**
 * One session per graph of the bundle, each checked against the manifest's contract.
 * @throws {RankError} ENGINE_UNAVAILABLE without the CUDA provider; MODEL_CONTRACT when a graph does
 *   not load or has other inputs or outputs than the manifest says
 */
export async function createSessions(options: WorkerOptions): Promise<Sessions> {
  if (options.provider === 'cpu') return { ...(await createAll(options, 'cpu')), provider: 'cpu' }
  try {
    return { ...(await createAll(options, 'cuda')), provider: 'cuda' }
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    if (error instanceof RankError && error.code === 'MODEL_CONTRACT' && !isCudaMissing(why))
      throw error
    const unavailable = `the CUDA provider does not start on device ${options.deviceId}: ${why}`
    if (!options.cudaFallback) {
      throw new RankError(
        'ENGINE_UNAVAILABLE',
        `${unavailable} (expected onnxruntime-node with its CUDA libraries and a visible GPU; ask for the CPU fallback to run without)`,
        { cause: error },
      )
    }
    return { ...(await createAll(options, 'cpu')), provider: 'cpu', warning: unavailable }
  }
}

async function createAll(options: WorkerOptions, provider: 'cpu' | 'cuda') {
  const { folder, manifest } = options
  const create = async (name: GraphName | RetrievalGraphName) => {
    const contract = manifest.graphs[name]
    if (contract === undefined) throw new Error(`no graph ${name}`)
    const file = `${folder}/${contract.file}`
    let session: InferenceSession
    try {
      session = await InferenceSession.create(file, sessionOptions(options, provider))
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause)
      throw new RankError('MODEL_CONTRACT', `${file} does not load: ${why}`, { cause })
    }
    checkContract(file, signatureOf(session), contract)
    return session
  }
  return {
    prefill: await create('prefill'),
    score: await create('score'),
    rank: await create('rank'),
    ...(hasRetrieval(manifest) && {
      encode: await create('encode'),
      retrieve: await create('retrieve'),
    }),
  }
}

function sessionOptions(
  { deviceId, threads, spin }: WorkerOptions,
  provider: 'cpu' | 'cuda',
): InferenceSession.SessionOptions {
  return {
    executionProviders: [provider === 'cuda' ? { name: 'cuda', deviceId } : 'cpu'],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    executionMode: 'sequential',
    // A pattern is kept per input shape, and a service sees every pair of lengths there is.
    enableMemPattern: false,
    logSeverityLevel: 3,
    extra: { session: { intra_op: { allow_spinning: spin ? '1' : '0' } } },
  }
}

/** ONNX Runtime's messages for a provider that is not compiled in, not installed, or has no device. */
function isCudaMissing(message: string): boolean {
  return /backend not found|not available|libonnxruntime_providers|CUDA|no available backend/i.test(
    message,
  )
}

function signatureOf({ inputMetadata, outputMetadata }: InferenceSession): GraphSignature {
  const found = (value: InferenceSession.ValueMetadata) =>
    value.isTensor
      ? { name: value.name, type: value.type, dims: value.shape }
      : { name: value.name, type: 'no tensor' }
  return { inputs: inputMetadata.map(found), outputs: outputMetadata.map(found) }
}
