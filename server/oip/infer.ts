import { Compile } from 'typebox/compile'
import type { Ranker, RankResult } from '../../falcon/types.js'
import { check, show } from '../../model/check.js'
import { RankError } from '../../model/errors.js'
import { isRecord } from '../fault.js'
import { float32 } from '../packed.js'
import { InferRequest } from './schema.js'
import { type InputTensor, refused, stringsOf, wholeNumbersOf } from './tensors.js'

/** What a ranking takes as tensors. All but user_id and candidates may be absent. */
export const INPUTS = [
  { name: 'user_id', datatype: 'BYTES', shape: [1] },
  { name: 'candidates', datatype: 'BYTES', shape: [-1] },
  { name: 'history_items', datatype: 'BYTES', shape: [-1] },
  { name: 'history_times', datatype: 'INT64', shape: [-1] },
  { name: 'history_actions', datatype: 'BYTES', shape: [-1] },
  { name: 'time', datatype: 'INT64', shape: [1] },
  { name: 'request', datatype: 'BYTES', shape: [1] },
] as const

/** One output per task beside the score, each in the order of the candidates. */
export function outputsOf({ tasks }: Pick<Ranker['model'], 'tasks'>) {
  return ['score', ...tasks.map(({ name }) => name)].map((name) => ({
    name,
    datatype: 'FP32',
    shape: [-1],
  }))
}

export type Infer = {
  readonly id: string | undefined
  /** A body of POST /v1/rank, unchecked. */
  readonly body: Record<string, unknown>
  /** Undefined: all. */
  readonly outputs: readonly string[] | undefined
  isBinary(output: string): boolean
}

const checker = Compile(InferRequest)

/**
 * A request of /v2/models/{name}/infer: JSON of `jsonBytes`, all when undefined, and its tensors' bytes behind it.
 * @throws {RankError} INVALID_REQUEST
 */
export function parseInfer(bytes: Buffer, jsonBytes: number | undefined): Infer {
  const end = jsonBytes ?? bytes.byteLength
  if (!(end <= bytes.byteLength)) {
    const message = `Inference-Header-Content-Length must be at most the body's ${bytes.byteLength} bytes, got ${end}`
    throw new RankError('INVALID_REQUEST', message)
  }
  const request = check(checker, parseJson(bytes.subarray(0, end)), 'INVALID_REQUEST', 'the body')
  const { id, parameters, outputs } = request
  const isBinary = new Map(outputs?.map((one) => [one.name, one.parameters?.binary_data]))
  return {
    id,
    body: toBody(withBytes(request, bytes.subarray(end))),
    outputs: outputs?.map(({ name }) => name),
    isBinary: (name) => isBinary.get(name) ?? parameters?.binary_data_output ?? false,
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    const why = error instanceof Error ? error.message : 'malformed'
    throw new RankError('INVALID_REQUEST', `the body must be JSON: ${why}`)
  }
}

/** The inputs, each with its share of what stands behind the JSON. */
function withBytes({ inputs }: InferRequest, tail: Buffer): Map<string, InputTensor> {
  const tensors = new Map<string, InputTensor>()
  let at = 0
  for (const { name, datatype, shape, data, parameters } of inputs) {
    const size = parameters?.binary_data_size
    const bytes = size === undefined ? undefined : tail.subarray(at, at + size)
    const tensor = { name, datatype, shape, data, bytes }
    if (bytes !== undefined && bytes.byteLength !== size) {
      throw refused(tensor, `binary_data_size ${size} goes beyond the body`)
    }
    if (tensors.has(name)) throw refused(tensor, 'comes twice')
    at += size ?? 0
    tensors.set(name, tensor)
  }
  if (at === tail.byteLength) return tensors
  const message = `the inputs have ${at} bytes behind the JSON, got ${tail.byteLength}`
  throw new RankError('INVALID_REQUEST', message)
}

/** As POST /v1/rank has it, whose checks follow. `request` is JSON with what no tensor says. */
function toBody(tensors: Map<string, InputTensor>): Record<string, unknown> {
  const known = new Set<string>(INPUTS.map(({ name }) => name))
  for (const [name, tensor] of tensors) {
    if (known.has(name)) continue
    throw refused(tensor, `is not one of ${[...known].join(', ')}`)
  }
  const [userId, candidates, time] = ['user_id', 'candidates', 'time'].map((name) =>
    tensors.get(name),
  )
  const rest = restOf(tensors.get('request'))
  return {
    ...rest,
    ...(userId !== undefined && { user: { ...Object(rest.user), id: single(userId, stringsOf) } }),
    ...(candidates !== undefined && { candidates: stringsOf(candidates) }),
    ...(time !== undefined && { time: Number(single(time, wholeNumbersOf)) }),
    ...historyOf(tensors),
  }
}

function restOf(tensor: InputTensor | undefined): Record<string, unknown> {
  if (tensor === undefined) return {}
  const value = parseJson(Buffer.from(single(tensor, stringsOf)))
  if (!isRecord(value)) throw refused(tensor, `must be a JSON object, got ${show(value)}`)
  // Scores are answered for each candidate in its place, so there is nothing to leave out.
  const senseless = ['topK', 'partial', 'explain'].find((name) => Object.hasOwn(value, name))
  if (senseless === undefined) return value
  throw refused(tensor, `must not have ${senseless}: every candidate is answered, in its place`)
}

/** Parallel columns to events; an event's actions are a JSON array of names, '' = not observed. */
function historyOf(tensors: Map<string, InputTensor>) {
  const items = tensors.get('history_items')
  const times = tensors.get('history_times')
  const actions = tensors.get('history_actions')
  if (items === undefined) {
    const stray = times ?? actions
    if (stray !== undefined) throw refused(stray, 'needs history_items')
    return {}
  }
  const ids = stringsOf(items)
  if (times === undefined) throw refused(items, 'needs history_times')
  const seconds = sameLength(times, wholeNumbersOf(times), ids.length)
  const done = actions === undefined ? [] : sameLength(actions, stringsOf(actions), ids.length)
  const history = ids.map((item, i) => {
    const names = done[i] || undefined
    return {
      ...{ item, time: Number(seconds[i]) },
      ...(names !== undefined && { actions: parseJson(Buffer.from(names)) }),
    }
  })
  return { history }
}

function sameLength<T>(tensor: InputTensor, values: readonly T[], length: number): readonly T[] {
  if (values.length === length) return values
  throw refused(
    tensor,
    `must have as many elements as history_items, ${length}, got ${values.length}`,
  )
}

function single<T>(tensor: InputTensor, read: (tensor: InputTensor) => readonly T[]): T {
  const [value, ...more] = read(tensor)
  if (value !== undefined && more.length === 0) return value
  throw refused(tensor, `must have one element, got ${value === undefined ? 0 : 1 + more.length}`)
}

/** A reply, and where its JSON ends if tensors' bytes follow. */
export type InferReply = { readonly body: Buffer; readonly jsonBytes: number | undefined }

/** @throws {RankError} INVALID_REQUEST for an output that there is not */
export function checkOutputs(
  model: Pick<Ranker['model'], 'tasks'>,
  { outputs }: Pick<Infer, 'outputs'>,
): void {
  const names = outputsOf(model).map(({ name }) => name)
  const unknown = outputs?.find((name) => !names.includes(name))
  if (unknown === undefined) return
  const message = `output ${show(unknown)} is not one of ${names.join(', ')}`
  throw new RankError('INVALID_REQUEST', message)
}

/** Scores in the order of the candidates, for outputs that were checked. */
export function toReply(
  model: Ranker['model'],
  { items, candidates }: Pick<RankResult, 'items' | 'candidates'>,
  { id, outputs, isBinary }: Infer,
): InferReply {
  const inOrder = items.toSorted((a, b) => a.index - b.index)
  const tails: Uint8Array[] = []
  const tensors = (outputs ?? outputsOf(model).map(({ name }) => name)).map((name) => {
    const value = (item: (typeof items)[number]) =>
      name === 'score' ? item.score : (item.tasks[name] ?? Number.NaN)
    const tensor = { name, datatype: 'FP32', shape: [candidates] }
    if (!isBinary(name)) return { ...tensor, data: inOrder.map(value) }
    const bytes = float32(inOrder, value)
    tails.push(bytes)
    return { ...tensor, parameters: { binary_data_size: bytes.byteLength } }
  })
  const json = Buffer.from(
    JSON.stringify({
      ...{ model_name: model.name, model_version: model.version },
      ...(id !== undefined && { id }),
      outputs: tensors,
    }),
  )
  return {
    body: Buffer.concat([json, ...tails]),
    jsonBytes: tails.length > 0 ? json.byteLength : undefined,
  }
}
