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
  /** The most inputs of one run, asked before each. */
  readonly limit: () => number
  readonly run: (inputs: readonly I[], options: Pointer) => Promise<readonly O[]>
}

type Member<I, O> = {
  readonly input: I
  readonly key: string
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

  const take = (first: Member<I, O>): Member<I, O>[] => {
    const batch = waiting.filter((each) => each.key === first.key).slice(0, limit())
    // The first one's turn has come, also where the limit would leave it out.
    if (!batch.includes(first)) batch[0] = first
    for (const member of batch) waiting.splice(waiting.indexOf(member), 1)
    return batch
  }

  return {
    submit: (input, signal) =>
      new Promise<O>((resolve, reject) => {
        if (signal?.aborted) {
          reject(signal.reason)
          return
        }
        const onAbort = () => {
          const place = waiting.indexOf(member)
          if (place !== -1) waiting.splice(place, 1)
          reject(signal?.reason)
        }
        signal?.addEventListener('abort', onAbort, { once: true })
        const settled = () => signal?.removeEventListener('abort', onAbort)
        const member: Member<I, O> = {
          input,
          key: key(input),
          resolve(output) {
            settled()
            resolve(output)
          },
          reject(error) {
            settled()
            reject(error)
          },
        }
        waiting.push(member)
        scheduler
          .submit(async (runOptions) => {
            // Taken by the run of an earlier one, or cancelled.
            if (!waiting.includes(member)) return
            const batch = take(member)
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
          })
          .catch(member.reject)
      }),
  }
}
