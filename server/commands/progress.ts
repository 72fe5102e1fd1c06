const BAR_WIDTH = 30
const REDRAW_MS = 100
/** Without a terminal, one line per tenth. */
const PLAIN_STEPS = 10

/** A progress bar on stderr: redrawn in place on a terminal, a few plain lines in a log. */
export function createProgress(label: string, total: number) {
  const start = performance.now()
  const isTerminal = process.stderr.isTTY
  let done = 0
  let drawn = 0
  const line = () => {
    const share = total === 0 ? 1 : done / total
    const filled = Math.round(share * BAR_WIDTH)
    const seconds = (performance.now() - start) / 1000
    const left = done === 0 ? '' : `, ${Math.ceil(seconds / share - seconds)} s left`
    const bar = `${'█'.repeat(filled)}${'░'.repeat(BAR_WIDTH - filled)}`
    return `${label} ${bar} ${(100 * share).toFixed(0).padStart(3)} % (${done}/${total}${left})`
  }
  return {
    advance(count = 1): void {
      const before = Math.floor((PLAIN_STEPS * done) / total)
      done += count
      if (isTerminal && (performance.now() - drawn > REDRAW_MS || done === total)) {
        drawn = performance.now()
        process.stderr.write(`\r\x1b[K${line()}`)
        if (done === total) process.stderr.write('\n')
      } else if (!isTerminal && Math.floor((PLAIN_STEPS * done) / total) > before) {
        process.stderr.write(`${line()}\n`)
      }
    },
  }
}

/** A bar for each of some things that has at least so many parts; told how many are done of how many. */
export function largeOnes(
  label: string,
  least: number,
): (name: string, done: number, total: number) => void {
  let current:
    | { readonly name: string; readonly bar: ReturnType<typeof createProgress> }
    | undefined
  let before = 0
  return (name, done, total) => {
    if (total < least) return
    if (current?.name !== name) {
      current = { name, bar: createProgress(`${label} ${name}`, total) }
      before = 0
    }
    current.bar.advance(done - before)
    before = done
  }
}
