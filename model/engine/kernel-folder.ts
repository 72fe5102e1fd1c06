import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'

/** An optional package with prebuilt libraries. */
const PACKAGE = `peregrine-kernels-${process.platform}-${process.arch}`
/** Where model/kernels/build.sh puts them, and cuda/build.sh its own in `cuda`. */
const BUILT = fileURLToPath(new URL('../../../kernels', import.meta.url))

/**
 * The folder of kernel libraries for a provider that a choice means: `off` none, `auto` the package's, else what
 * was built here, else none; anything else is the folder itself.
 */
export function kernelFolder(choice: string, provider: 'cpu' | 'cuda'): string | undefined {
  if (choice === 'off') return undefined
  if (choice !== 'auto') return choice
  const part = provider === 'cuda' ? '/cuda' : ''
  try {
    return dirname(createRequire(import.meta.url).resolve(`${PACKAGE}${part}/kernels.json`))
  } catch {
    return existsSync(`${BUILT}${part}/kernels.json`) ? `${BUILT}${part}` : undefined
  }
}
