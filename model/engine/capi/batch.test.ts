import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { deferred } from '../../deferred.js'
import { createRandom } from '../../random.js'
import { createBatcher } from './batch.js'
import { findLibrary } from './library.js'
import { loadOrt, type Pointer } from './ort.js'
import { createScheduler } from './scheduler.js'

const ROUNDS = 600
const STEPS = 60
const ort = loadOrt(findLibrary())

type Run = {
  readonly inputs: readonly string[]
  readonly options: Pointer
  readonly end: ReturnType<typeof deferred<readonly string[]>>
}

/** A batcher whose runs end when the test says so; an input's key is its first letter. */
function openBatcher({ slots = 1, limit = 100 } = {}) {
  const stopped: Pointer[] = []
  const scheduler = createScheduler(
    {
      ...ort,
      RunOptionsSetTerminate(options: Pointer) {
        ort.RunOptionsSetTerminate(options)
        stopped.push(options)
      },
    },
    slots,
  )
  const runs: Run[] = []
  const batcher = createBatcher<string, string>({
    scheduler,
    key: (input) => input.slice(0, 1),
    limit: () => limit,
    run: (inputs, options) => {
      const end = deferred<readonly string[]>()
      runs.push({ inputs, options, end })
      return end.promise
    },
  })
  const finish = async (i: number) => {
    runs[i]?.end.resolve(runs[i].inputs.map((input) => `${input}!`))
    await setImmediate()
  }
  return { scheduler, batcher, runs, stopped, finish }
}

describe('createBatcher', () => {
  test('runs a lone input at once, and what waits meanwhile as one per key, oldest first', async () => {
    const { scheduler, batcher, runs, finish } = openBatcher()
    const inputs = ['a1', 'a2', 'b1', 'a3', 'b2']
    const answers = Promise.all(inputs.map((input) => batcher.submit(input)))
    for (let i = 0; i < 3; i++) await finish(i)
    assert.deepEqual(await answers, ['a1!', 'a2!', 'b1!', 'a3!', 'b2!'])
    assert.deepEqual(
      runs.map((run) => run.inputs),
      [['a1'], ['a2', 'a3'], ['b1', 'b2']],
    )
    assert.equal(scheduler.pending(), 0)
    await scheduler.close()
  })

  test('takes no more than the limit, which is at least one, and leaves the others their turns', async () => {
    for (const [limit, expected] of [
      [2, [['a1'], ['a2', 'a3'], ['a4', 'a5']]],
      [1, [['a1'], ['a2'], ['a3'], ['a4'], ['a5']]],
      [0, [['a1'], ['a2'], ['a3'], ['a4'], ['a5']]],
    ] as const) {
      const { scheduler, batcher, runs, finish } = openBatcher({ limit })
      const answers = Promise.all(['a1', 'a2', 'a3', 'a4', 'a5'].map((a) => batcher.submit(a)))
      for (let i = 0; i < expected.length; i++) await finish(i)
      await answers
      assert.deepEqual(
        runs.map(({ inputs }) => inputs),
        expected,
      )
      await scheduler.close()
    }
  })

  test('gives every member the error of its run, and the next run its own answer', async () => {
    const { scheduler, batcher, runs, finish } = openBatcher()
    const first = batcher.submit('a1')
    const others = Promise.allSettled([batcher.submit('a2'), batcher.submit('a3')])
    await finish(0)
    const error = new Error('broken')
    runs[1]?.end.reject(error)
    assert.equal(await first, 'a1!')
    for (const outcome of await others) {
      assert.ok(outcome.status === 'rejected' && outcome.reason === error)
    }
    const last = batcher.submit('a4')
    await finish(2)
    assert.equal(await last, 'a4!')
    await scheduler.close()
  })

  test('stops a run that all members have left, and not one that somebody still waits for', async () => {
    for (let members = 1; members <= 3; members++) {
      for (let aborted = 0; aborted < 2 ** members; aborted++) {
        const { scheduler, batcher, runs, stopped, finish } = openBatcher()
        const before = batcher.submit('b')
        const controllers = Array.from({ length: members }, () => new AbortController())
        const answers = controllers.map(({ signal }, i) => batcher.submit(`a${i}`, signal))
        const settled = Promise.allSettled(answers)
        await finish(0)
        await before
        controllers.forEach((controller, i) => {
          if (aborted & (1 << i)) controller.abort(i)
        })
        const isLeft = aborted === 2 ** members - 1
        assert.deepEqual(stopped, isLeft ? [runs[1]?.options] : [], `${aborted} of ${members}`)
        await finish(1)
        const outcomes = await settled
        outcomes.forEach((outcome, i) => {
          const expected =
            aborted & (1 << i)
              ? { status: 'rejected', reason: i }
              : { status: 'fulfilled', value: `a${i}!` }
          assert.deepEqual(outcome, expected)
        })
        await scheduler.close()
      }
    }
  })

  test('does not run what was aborted while it waited, nor counts it as pending', async () => {
    const { scheduler, batcher, runs, finish } = openBatcher()
    const first = batcher.submit('a1')
    const controller = new AbortController()
    const second = batcher.submit('a2', controller.signal)
    const third = batcher.submit('a3')
    assert.equal(scheduler.pending(), 3)
    controller.abort(new Error('gone'))
    await assert.rejects(second, /gone/)
    assert.equal(scheduler.pending(), 2)
    await finish(0)
    await finish(1)
    await Promise.all([first, third])
    assert.deepEqual(
      runs.map(({ inputs }) => inputs),
      [['a1'], ['a3']],
    )
    await assert.rejects(batcher.submit('a4', AbortSignal.abort(new Error('before'))), /before/)
    await scheduler.close()
  })

  test('refuses what comes after the scheduler was closed, and does not keep it', async () => {
    const { scheduler, batcher, runs, finish } = openBatcher()
    const answers = Promise.all([batcher.submit('a1'), batcher.submit('a2')])
    const closed = scheduler.close()
    await assert.rejects(batcher.submit('a3'), { code: 'WORKER_CRASHED' })
    await finish(0)
    await finish(1)
    assert.deepEqual(await answers, ['a1!', 'a2!'])
    assert.deepEqual(runs[1]?.inputs, ['a2'])
    await closed
  })

  test('answers each with its own, mixes no keys and stops no wanted run, in every interleaving', async () => {
    for (let seed = 1; seed <= ROUNDS; seed++) await playRandomly(seed)
  })
})

async function playRandomly(seed: number): Promise<void> {
  const random = createRandom(seed)
  const below = (count: number) => Math.floor(random() * count)
  const before = ort.live()
  const limit = 1 + (seed % 4)
  const slots = 1 + (seed % 2)
  const { scheduler, batcher, runs, stopped } = openBatcher({ slots, limit })
  const ended = new Set<Run>()
  const members = new Map<string, { controller: AbortController; outcome?: unknown }>()
  const end = (run: Run) => {
    if (ended.has(run)) return
    ended.add(run)
    if (random() < 0.2) run.end.reject(run)
    else run.end.resolve(run.inputs.map((input) => `${input}!`))
  }
  for (let step = 0; step < STEPS; step++) {
    const run = runs[below(runs.length)]
    const someone = [...members.values()][below(members.size)]
    const choice = below(6)
    if (choice < 2) {
      const input = `${'abc'[below(3)]}${members.size}`
      const member: { controller: AbortController; outcome?: unknown } = {
        controller: new AbortController(),
      }
      members.set(input, member)
      const keep = (outcome: unknown) => {
        member.outcome = outcome
      }
      batcher.submit(input, member.controller.signal).then(keep, keep)
    } else if (choice === 2) someone?.controller.abort('aborted')
    else if (choice === 3 && run !== undefined) end(run)
    else for (let turns = below(4); turns > 0; turns--) await Promise.resolve()
    const open = runs.filter((each) => !ended.has(each))
    assert.ok(open.length <= slots, `seed ${seed}, step ${step}`)
    for (const { inputs, options } of open) {
      const isWanted = inputs.some((input) => !members.get(input)?.controller.signal.aborted)
      if (!isWanted) assert.ok(stopped.includes(options), `seed ${seed}: ${inputs} goes on`)
    }
  }
  while (scheduler.pending() > 0) {
    for (const run of runs) end(run)
    await setImmediate()
  }
  await setImmediate()
  const ran = runs.flatMap(({ inputs }) => inputs)
  assert.equal(new Set(ran).size, ran.length, `seed ${seed}: nobody runs twice`)
  for (const { inputs } of runs) {
    assert.ok(inputs.length <= limit, `seed ${seed}: ${inputs}`)
    assert.equal(new Set(inputs.map((input) => input[0])).size, 1, `seed ${seed}: ${inputs}`)
    const order = inputs.map((input) => Number(input.slice(1)))
    assert.deepEqual(
      order,
      order.toSorted((a, b) => a - b),
    )
  }
  for (const [input, { controller, outcome }] of members) {
    const own = runs.find(({ inputs }) => inputs.includes(input))
    const right =
      outcome === `${input}!` ||
      (own !== undefined && outcome === own) ||
      (outcome === 'aborted' && controller.signal.aborted)
    assert.ok(right, `seed ${seed}: ${input} got ${outcome}`)
  }
  await scheduler.close()
  assert.equal(ort.live(), before)
}
