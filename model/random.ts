const STEP = 0x6d2b79f5

/**
 * Uniform numbers in [0, 1) from a seed, without the first `skip` of them.
 * @see Tommy Ettinger's mulberry32 (public domain)
 */
export function createRandom(seed: number, skip = 0): () => number {
  let state = (Math.imul(seed, 0x9e3779b1) + Math.imul(skip, STEP)) >>> 0
  return () => {
    state = (state + STEP) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
