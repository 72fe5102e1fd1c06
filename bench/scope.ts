import type { Scope } from '../test/fixtures.js'

/** A bench's own scope; cleans up last things first. */
export function createScope(): Scope & { end(): Promise<void> } {
  const cleanups: (() => void | Promise<void>)[] = []
  return {
    after: (clean) => cleanups.push(clean),
    async end() {
      for (const clean of cleanups.splice(0).reverse()) await clean()
    },
  }
}
