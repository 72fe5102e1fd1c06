import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { deferred } from '../../deferred.js'
import { createRandom } from '../../random.js'
import { findLibrary } from './library.js'
import { loadOrt, type Pointer } from './ort.js'
import { createScheduler } from './scheduler.js'

const ROUNDS = 600
const STEPS = 60
const ort = loadOrt(findLibrary())

/** ONNX Runtime's own run options; which of them are to stop is seen from outside. */
function watchedOptions() {
  const stopped = new Set<Pointer>()
  return {
    stopped,
    ort: {
      ...ort,
      RunOptionsSetTerminate(options: Pointer) {
        ort.RunOptionsSetTerminate(options)
        stopped.add(options)
      },
      RunOptionsUnsetTerminate(options: Pointer) {
        ort.RunOptionsUnsetTerminate(options)
        stopped.delete(options)
      },
    },
  }
}

describe('createScheduler', () => {
  test('keeps order, slots and signals apart in every interleaving', async () => {
    for (let seed = 1; seed <= ROUNDS; seed++) await playRandomly(seed)
  })

  test('rejects at once with the signal’s reason, without running anything, when it is aborted before', async () => {
    const scheduler = createScheduler(ort, 1)
    const reason = new Error('too late')
    const work = () => assert.fail('started')
    await assert.rejects(scheduler.submit(work, AbortSignal.abort(reason)), reason)
    assert.equal(scheduler.pending(), 0)
    await scheduler.close()
  })

  test('never starts what was aborted in the same turn in which its slot became free', async () => {
    const scheduler = createScheduler(ort, 1)
    const first = deferred<void>()
    const running = scheduler.submit(() => first.promise)
    const controller = new AbortController()
    const waiting = scheduler.submit(async () => assert.fail('started'), controller.signal)
    first.resolve()
    // Some microtasks before the slot is free, and before the rejection is heard of.
    await Promise.resolve()
    controller.abort()
    await assert.rejects(waiting, { name: 'AbortError' })
    await running
    assert.equal(scheduler.pending(), 0)
    await scheduler.close()
  })

  test('passes on what work throws, also before its first await', async () => {
    const scheduler = createScheduler(ort, 1)
    const error = new Error('broken')
    const thrown = scheduler.submit(() => {
      throw error
    })
    await assert.rejects(thrown, error)
    await assert.rejects(
      scheduler.submit(async () => Promise.reject(error)),
      error,
    )
    assert.equal(await scheduler.submit(async () => 3), 3)
    await scheduler.close()
  })

  test('lets what was submitted end when it is closed, and refuses what comes after', async () => {
    const scheduler = createScheduler(ort, 1)
    const first = deferred<string>()
    const jobs = [scheduler.submit(() => first.promise), scheduler.submit(async () => 'second')]
    let isClosed = false
    const closed = Promise.all([scheduler.close(), scheduler.close()]).then(() => {
      isClosed = true
    })
    await assert.rejects(
      scheduler.submit(async () => 'third'),
      { code: 'WORKER_CRASHED', message: 'the engine is closed' },
    )
    await setImmediate()
    assert.equal(isClosed, false)
    first.resolve('first')
    assert.deepEqual(await Promise.all(jobs), ['first', 'second'])
    await closed
  })

  test('closes when the last that waits is aborted', async () => {
    const scheduler = createScheduler(ort, 1)
    const first = deferred<void>()
    const running = scheduler.submit(() => first.promise)
    const controller = new AbortController()
    const waiting = scheduler.submit(async () => {}, controller.signal)
    const closed = scheduler.close()
    first.resolve()
    controller.abort()
    await assert.rejects(waiting)
    await Promise.all([running, closed])
  })
})

type Job = {
  readonly index: number
  readonly controller: AbortController
  readonly end: ReturnType<typeof deferred<number>>
  state: 'waiting' | 'running' | 'ended'
  options: Pointer
  outcome?: { readonly value: number } | { readonly error: unknown }
}

/** Submits, ends, fails and aborts jobs at random, and holds what happens against the rules. */
async function playRandomly(seed: number): Promise<void> {
  const random = createRandom(seed)
  const below = (limit: number) => Math.floor(random() * limit)
  const before = ort.live()
  const slots = 1 + (seed % 3)
  const watched = watchedOptions()
  const scheduler = createScheduler(watched.ort, slots)
  const jobs: Job[] = []
  const dropped: number[] = []
  const what = () => `seed ${seed}: ${jobs.map(({ index, state }) => `${index} ${state}`)}`
  const running = () => jobs.filter(({ state }) => state === 'running')

  const submit = () => {
    const index = jobs.length
    const end = deferred<number>()
    const job: Job = {
      index,
      controller: new AbortController(),
      end,
      state: 'waiting',
      options: 0n,
    }
    jobs.push(job)
    const work = async (options: Pointer) => {
      assert.equal(job.state, 'waiting', what())
      assert.equal(job.controller.signal.aborted, false, what())
      const earlier = jobs.slice(0, index).filter(({ state }) => state === 'waiting')
      assert.deepEqual(earlier, [], what())
      assert.ok(
        running().every((other) => other.options !== options),
        `one's own options, ${what()}`,
      )
      assert.equal(watched.stopped.has(options), false, what())
      job.state = 'running'
      job.options = options
      assert.ok(running().length <= slots, what())
      try {
        return await end.promise
      } finally {
        job.state = 'ended'
      }
    }
    scheduler
      .submit(work, job.controller.signal, (value) => dropped.push(value))
      .then(
        (value) => {
          job.outcome = { value }
        },
        (error: unknown) => {
          job.outcome = { error }
        },
      )
  }
  const abort = (job: Job) => {
    const { state, controller } = job
    const isFirst = !controller.signal.aborted
    controller.abort(job.index)
    if (state === 'waiting') job.state = 'ended'
    if (state === 'running' && isFirst) assert.ok(watched.stopped.has(job.options), what())
  }

  for (let step = 0; step < STEPS; step++) {
    const job = jobs[below(jobs.length)]
    const choice = below(6)
    if (job === undefined || choice < 2) submit()
    else if (choice === 2) abort(job)
    else if (choice === 3 && job.state === 'running') job.end.resolve(job.index)
    else if (choice === 4 && job.state === 'running') job.end.reject(new Error(`${job.index}`))
    else for (let turns = below(4); turns > 0; turns--) await Promise.resolve()
  }
  const closed = scheduler.close()
  while (scheduler.pending() > 0) {
    for (const job of running()) job.end.resolve(job.index)
    await setImmediate()
  }
  await closed
  for (const { index, controller, outcome } of jobs) {
    assert.ok(outcome !== undefined, `${index} was answered, ${what()}`)
    if ('value' in outcome) assert.equal(outcome.value, index, what())
    else if (outcome.error instanceof Error) assert.equal(outcome.error.message, `${index}`, what())
    else assert.ok(outcome.error === index && controller.signal.aborted, what())
    const wasDropped = dropped.includes(index)
    if (wasDropped) assert.deepEqual(outcome, { error: index }, what())
  }
  assert.equal(watched.stopped.size, 0, what())
  assert.equal(ort.live(), before, what())
}
