/** One piece of work on a key, from what it reads to what it keeps. */
export type Epoch = {
  /** False once the key was forgotten: what comes of this work must not be kept. */
  isCurrent(): boolean
  /** Exactly once, when nothing of this work is kept any more. */
  end(): void
}

/** Tells work that began before a key was forgotten from work that began after. */
export type Epochs = {
  begin(key: string): Epoch
  forget(key: string): void
  forgetAll(): void
}

/** Holds only keys that are worked on: a count of all that were ever forgotten would grow for ever. */
export function createEpochs(): Epochs {
  type Work = { isCurrent: boolean; count: number }
  const works = new Map<string, Work>()
  const forget = (key: string, work: Work) => {
    work.isCurrent = false
    works.delete(key)
  }
  return {
    begin(key) {
      const work = works.get(key) ?? { isCurrent: true, count: 0 }
      works.set(key, work)
      work.count++
      return {
        isCurrent: () => work.isCurrent,
        end() {
          work.count--
          if (work.count === 0 && work.isCurrent) works.delete(key)
        },
      }
    },
    forget(key) {
      const work = works.get(key)
      if (work !== undefined) forget(key, work)
    },
    forgetAll() {
      for (const [key, work] of works) forget(key, work)
    },
  }
}
