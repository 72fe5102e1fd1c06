import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type HostPages, hostTable } from './host-table.js'

const FROM = 4096n

/** CUDA as far as a table on the host goes; what is held must be given back. */
function fakePages(changes: Partial<HostPages> = {}) {
  const held: string[] = []
  const pages: HostPages = {
    register: (from, bytes, flags) => {
      held.push(`registered ${from} ${bytes} ${flags}`)
    },
    unregister: (from) => {
      held.splice(
        held.findIndex((each) => each.startsWith(`registered ${from} `)),
        1,
      )
    },
    deviceAddress: (from) => from + 1n,
    copy(_, bytes) {
      held.push(`copied ${bytes}`)
      return { address: 99n, free: () => void held.splice(held.indexOf(`copied ${bytes}`), 1) }
    },
    ...changes,
  }
  return { pages, held }
}

const refuse = () => {
  throw new Error('CUDA: operation not supported')
}

describe('hostTable', () => {
  test('is the file’s own pages where CUDA takes them, for reading only', () => {
    const { pages, held } = fakePages()
    const { address, isCopy, free } = hostTable(pages, FROM, 10_000)
    assert.deepEqual({ address, isCopy }, { address: FROM + 1n, isCopy: false })
    assert.deepEqual(held, [`registered ${FROM} 10000 11`])
    free()
    assert.deepEqual(held, [])
  })

  test('is a copy where CUDA does not, and leaves nothing registered', () => {
    for (const changes of [{ register: refuse }, { deviceAddress: refuse }]) {
      const { pages, held } = fakePages(changes)
      const { address, isCopy, free } = hostTable(pages, FROM, 10_000)
      assert.deepEqual({ address, isCopy }, { address: 99n, isCopy: true })
      assert.deepEqual(held, ['copied 10000'])
      free()
      assert.deepEqual(held, [])
    }
  })

  test('fails where there is no room for a copy either', () => {
    const { pages, held } = fakePages({ register: refuse, copy: refuse })
    assert.throws(() => hostTable(pages, FROM, 10_000), /not supported/)
    assert.deepEqual(held, [])
  })
})
