import { parseArgs } from 'node:util'
import { verifyBundle } from '../../falcon/verify.js'
import { createEngine } from '../../model/engine/create.js'
import { openBundle } from '../../model/manifest.js'
import { needFolder } from './export.js'
import { engineFlag, providerFlag } from './flags.js'

export const VERIFY_HELP = `peregrine verify DIR [--provider cpu|cuda] [--engine auto|capi|node] [--kernels off|auto|DIR]
    checks a bundle: files, hashes, contract, test vectors`

/** Throws at the first fault; prints what was checked otherwise. */
export async function verifyCommand(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      provider: { type: 'string', default: 'cpu' },
      engine: { type: 'string', default: 'auto' },
      kernels: { type: 'string', default: 'off' },
    },
  })
  const folder = needFolder(positionals[0], `verify needs the folder of a bundle\n${VERIFY_HELP}`)
  const provider = providerFlag(values.provider)
  const choice = engineFlag(values.engine)
  const bundle = openBundle(folder)
  const { kernels } = values
  const { name, version, precision, files } = bundle.manifest
  process.stdout.write(
    `${name}@${version} ${precision}: ${Object.keys(files).length} files match their hashes\n`,
  )
  const engine = await createEngine({ bundle, provider, engine: choice, kernels, workers: 1 })
  try {
    const { cases, maxDifference, tolerance } = await verifyBundle(engine, bundle)
    process.stdout.write(
      `${engine.name}: ${cases} test vectors, largest difference ${maxDifference.toExponential(2)}, tolerance ${tolerance}\n`,
    )
    return 0
  } finally {
    await engine.close()
  }
}
