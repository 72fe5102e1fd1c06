/**
 * Places of the `k` rows (n, D) whose product with `user` is largest, best first: in JavaScript, what a
 * service without a graph would do.
 */
export function bestOf(rows: Float32Array, user: Float32Array, k: number): number[] {
  const width = user.length
  // A heap whose top is the worst of the best so far.
  const heap: { readonly score: number; readonly place: number }[] = []
  const isWorse = (a: number, b: number) => {
    const [x, y] = [heap[a], heap[b]]
    if (x === undefined || y === undefined) return false
    return x.score < y.score || (x.score === y.score && x.place > y.place)
  }
  const swap = (a: number, b: number) => {
    const [x, y] = [heap[a], heap[b]]
    if (x !== undefined && y !== undefined) {
      heap[a] = y
      heap[b] = x
    }
  }
  const sink = () => {
    for (let at = 0; ; ) {
      const left = 2 * at + 1
      const worse = isWorse(left + 1, left) ? left + 1 : left
      if (worse >= heap.length || !isWorse(worse, at)) return
      swap(worse, at)
      at = worse
    }
  }
  for (let place = 0; place * width < rows.length; place++) {
    let score = 0
    for (let i = 0, at = place * width; i < width; i++)
      score += (rows[at + i] ?? 0) * (user[i] ?? 0)
    if (heap.length < k) {
      heap.push({ score, place })
      for (let at = heap.length - 1; at > 0 && isWorse(at, (at - 1) >> 1); at = (at - 1) >> 1) {
        swap(at, (at - 1) >> 1)
      }
    } else if (score > (heap[0]?.score ?? 0)) {
      heap[0] = { score, place }
      sink()
    }
  }
  return heap.sort((a, b) => b.score - a.score || a.place - b.place).map(({ place }) => place)
}
