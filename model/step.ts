export type StepName =
  | 'parse'
  | 'queue'
  | 'history.read'
  | 'sequence'
  | 'kv.wait'
  | 'kv.lookup'
  | 'kv.fetch'
  | 'kv.prefill'
  | 'onePass'
  | 'score'
  | 'encode'
  | 'search'
  | 'heads'
  | 'serialize'

/** Counts and states; never what a user sent. */
export type StepAttributes = { readonly [name: string]: string | number | boolean }

/**
 * Is told of each part of one request's work when it ends, also when it fails. Times in milliseconds of
 * performance.now().
 */
export type OnStep = (
  name: StepName,
  startMs: number,
  endMs: number,
  attributes: StepAttributes,
) => void

/**
 * Does `work` and tells what it took; where nobody listens it only does it.
 * @param attributes - of what came of it; of work that failed only `error`
 */
export function timed<T>(
  onStep: OnStep | undefined,
  name: StepName,
  work: () => Promise<T>,
  attributes: (result: T) => StepAttributes,
): Promise<T> {
  return onStep === undefined ? work() : told(onStep, name, work, attributes)
}

async function told<T>(
  onStep: OnStep,
  name: StepName,
  work: () => Promise<T>,
  attributes: (result: T) => StepAttributes,
): Promise<T> {
  const startMs = performance.now()
  try {
    const result = await work()
    onStep(name, startMs, performance.now(), attributes(result))
    return result
  } catch (error) {
    onStep(name, startMs, performance.now(), { error: true })
    throw error
  }
}
