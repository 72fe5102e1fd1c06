import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type Family, labelsOf, percentOf, promote, unlabel, versionFor } from './family.js'
import type { Version } from './version.js'

const USERS = Array.from({ length: 2000 }, (_, u) => `user-${u}`)

function versionOf(version: string): Version {
  return {
    name: 'm',
    version,
    folder: '',
    state: 'ready',
    inFlight: 0,
    isOrphan: false,
    sinceMs: 0,
  }
}

/** Users by the version that answers them. */
function usersOf(family: Family, version: Version, nowMs = 0): Set<string> {
  return new Set(USERS.filter((user) => versionFor(family, user, nowMs) === version))
}

/** How many of so many users a share may differ by: five standard deviations. */
const SPREAD = 5 * Math.sqrt(USERS.length / 4)

describe('percentOf', () => {
  test('is the same every time, even over users, and of its own for each model', () => {
    const percents = USERS.map((user) => percentOf('m', user))
    assert.deepEqual(
      percents,
      USERS.map((user) => percentOf('m', user)),
    )
    for (const below of [10, 50, 90]) {
      const count = percents.filter((percent) => percent < below).length
      assert.ok(Math.abs(count - (below / 100) * USERS.length) < SPREAD, `${count} below ${below}`)
    }
    const both = USERS.filter((user, u) => (percents[u] ?? 0) < 50 && percentOf('n', user) < 50)
    assert.ok(Math.abs(both.length - USERS.length / 4) < SPREAD, `${both.length} below 50 in both`)
  })
})

describe('a canary', () => {
  const [one, two] = [versionOf('1'), versionOf('2')]

  test('gets its weight of the users, and keeps them when the weight grows', () => {
    const family: Family = { name: 'm', stable: one }
    assert.equal(usersOf(family, one).size, USERS.length)
    let before = new Set<string>()
    for (const weightPercent of [0, 5, 40, 100]) {
      family.canary = { version: two, weightPercent }
      const users = usersOf(family, two)
      const expected = (weightPercent / 100) * USERS.length
      assert.ok(Math.abs(users.size - expected) < SPREAD, `${users.size} at ${weightPercent} %`)
      for (const user of before) assert.ok(users.has(user))
      before = users
    }
    assert.equal(before.size, USERS.length)
  })
})

describe('a promotion', () => {
  const [one, two] = [versionOf('1'), versionOf('2')]

  test('without a ramp moves everybody at once', () => {
    const family: Family = { name: 'm', stable: one }
    promote(family, two, 0, 0)
    assert.equal(usersOf(family, two).size, USERS.length)
    assert.equal(family.former, one)
  })

  test('with a ramp moves user by user, nobody back, and begins with the canary’s users', () => {
    const canary = { version: two, weightPercent: 20 }
    const family: Family = { name: 'm', stable: one, canary }
    const canaries = usersOf(family, two)
    promote(family, two, 1000, 5000)
    assert.equal(family.canary, undefined)
    let before = usersOf(family, two, 5000)
    assert.deepEqual(before, canaries)
    for (const [nowMs, percent] of [
      [5250, 40],
      [5500, 60],
      [6000, 100],
    ] as const) {
      const users = usersOf(family, two, nowMs)
      const expected = (percent / 100) * USERS.length
      assert.ok(Math.abs(users.size - expected) < SPREAD, `${users.size} at ${percent} %`)
      for (const user of before) assert.ok(users.has(user))
      before = users
    }
    assert.equal(family.ramp, undefined, 'it is over')
  })

  test('of the stable version changes nothing', () => {
    const family: Family = { name: 'm', stable: one, former: two }
    promote(family, one, 1000, 0)
    assert.deepEqual(family, { name: 'm', stable: one, former: two })
  })

  test('of the shadow ends the shadow', () => {
    const family: Family = { name: 'm', stable: one, shadow: { version: two, sharePercent: 5 } }
    promote(family, two, 0, 0)
    assert.deepEqual(labelsOf(family, two), ['stable'])
  })
})

test('a version without labels gets no user, whatever it was', () => {
  const [one, two] = [versionOf('1'), versionOf('2')]
  const family: Family = {
    name: 'm',
    stable: one,
    canary: { version: two, weightPercent: 50 },
    shadow: { version: two, sharePercent: 50 },
  }
  assert.deepEqual(labelsOf(family, two), ['canary', 'shadow'])
  unlabel(family, two)
  assert.deepEqual(labelsOf(family, two), [])
  assert.equal(usersOf(family, one).size, USERS.length)
  promote(family, two, 1000, 0)
  unlabel(family, one)
  assert.equal(usersOf(family, two).size, USERS.length, 'the ramp ends with what it came from')
  assert.equal(family.former, undefined)
})
