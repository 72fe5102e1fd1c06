import type { Pointer } from './ort.js'
import type { Scheduler } from './scheduler.js'

export type Batcher<I, O> = {
  /** Resolves with this input's own result, whoever shared its run. */
  submit(input: I, signal?: AbortSignal): Promise<O>
}

export type BatchOptions<I, O> = {
  readonly scheduler: Scheduler
  /** Inputs of one key may share a run. */
  readonly key: (input: I) => string
  /** The most inputs like this one in a run, asked before each. */
  readonly limit: (input: I) => number
  readonly run: (inputs: readonly I[], options: Pointer) => Promise<readonly O[]>
}

/** A run to come or under way, and how many still want its results. */
type Run = { readonly stop: AbortController; wanted: number }

type Member<I, O> = {
  readonly input: I
  readonly key: string
  /** Its own until another's run takes it along. */
  run: Run
  resolve(output: O): void
  reject(error: unknown): void
}

/**
 * Merges what waits: while the slots are busy inputs gather, and the run that starts next takes all of
 * its key. A lone input runs at once, so the window is the run before it and nothing waits for company.
 */
export function createBatcher<I, O>(options: BatchOptions<I, O>): Batcher<I, O> {
  const { scheduler, key, limit, run } = options
  const waiting: Member<I, O>[] = []
  const remove = (member: Member<I, O>) => {
    const place = waiting.indexOf(member)
    if (place !== -1) waiting.splice(place, 1)
  }

  /** The first of its key, whose turn it is, and who may share its run. */
  const take = (first: Member<I, O>): Member<I, O>[] => {
    const batch = waiting
      .filter((each) => each.key === first.key)
      .slice(0, Math.max(1, limit(first.input)))
    for (const member of batch) {
      remove(member)
      if (member === first) continue
      // Its own turn in the scheduler's queue is for nothing now.
      member.run.stop.abort()
      member.run = first.run
      first.run.wanted++
    }
    return batch
  }

  const start = async (first: Member<I, O>, runOptions: Pointer) => {
    const batch = take(first)
    try {
      const outputs = await run(
        batch.map((each) => each.input),
        runOptions,
      )
      batch.forEach((each, i) => {
        const output = outputs[i]
        if (output === undefined) each.reject(new Error('a batch lost an output'))
        else each.resolve(output)
      })
    } catch (error) {
      for (const each of batch) each.reject(error)
    }
  }

  return {
    submit: (input, signal) =>
      new Promise<O>((resolve, reject) => {
        if (signal?.aborted) {
          reject(signal.reason)
          return
        }
        const onAbort = () => {
          remove(member)
          reject(signal?.reason)
          member.run.wanted--
          if (member.run.wanted === 0) member.run.stop.abort()
        }
        const settled = () => signal?.removeEventListener('abort', onAbort)
        const own: Run = { stop: new AbortController(), wanted: 1 }
        const member: Member<I, O> = {
          input,
          key: key(input),
          run: own,
          resolve(output) {
            settled()
            resolve(output)
          },
          reject(error) {
            settled()
            reject(error)
          },
        }
        signal?.addEventListener('abort', onAbort, { once: true })
        waiting.push(member)
        scheduler
          .submit((runOptions) => start(member, runOptions), own.stop.signal)
          .catch((error) => {
            // Stopped: the member was taken along by another, or nobody wants the run any more.
            if (own.stop.signal.aborted) return
            remove(member)
            member.reject(error)
          })
      }),
  }
}
