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
