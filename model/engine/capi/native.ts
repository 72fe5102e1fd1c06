import koffi from 'koffi'

/** koffi's own default overflows: ONNX Runtime's graph optimizer recurses deeply. */
const STACK_BYTES = 8 * 2 ** 20

// Only accepted before the first library, so it stands where all of them are loaded.
koffi.config({ ...koffi.config(), sync_stack_size: STACK_BYTES, async_stack_size: STACK_BYTES })

/** Kept for ever: a library that is unloaded leaves its threads without code. */
const libraries = new Map<string | null, ReturnType<typeof koffi.load>>()

/** A shared library, loaded once per process; null is the process itself, with its C library. */
export function loadLibrary(path: string | null): ReturnType<typeof koffi.load> {
  const known = libraries.get(path)
  if (known !== undefined) return known
  const library = koffi.load(path)
  libraries.set(path, library)
  return library
}

/** Whatever koffi made of a C function. */
type ForeignFunction = { async(...args: readonly unknown[]): unknown }

/** koffi takes 256 at once, counting the one whose callback is running. */
const MOST_CALLS = 255

/** Arguments of calls under way. */
const inFlight = new Set<readonly unknown[]>()
const waiting: (() => void)[] = []

/**
 * Calls a C function on a thread of libuv's pool. Arrays among the arguments stay until it is done:
 * koffi keeps only their addresses.
 */
export function callAsync<T>(call: ForeignFunction, ...args: readonly unknown[]): Promise<T> {
  return new Promise((resolve, reject) => {
    const start = () => {
      inFlight.add(args)
      try {
        call.async(...args, (error: unknown, result: T) => {
          inFlight.delete(args)
          waiting.shift()?.()
          if (error) reject(error)
          else resolve(result)
        })
      } catch (error) {
        inFlight.delete(args)
        waiting.shift()?.()
        reject(error)
      }
    }
    if (inFlight.size < MOST_CALLS) start()
    else waiting.push(start)
  })
}
