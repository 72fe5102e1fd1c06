import { readFileSync } from 'node:fs'
import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from '../../check.js'
import { type HstuConfig, readJson } from '../../config.js'
import { isSafe, type Precision } from '../../manifest.js'

/** What a folder of kernel libraries says of itself, in kernels.json. */
const Kernels = Type.Object(
  {
    libraries: Type.Array(
      Type.Object(
        {
          file: Type.String({ minLength: 1, maxLength: 256 }),
          provider: Type.Union([Type.Literal('cpu'), Type.Literal('cuda')]),
          precision: Type.Union([Type.Literal('fp32'), Type.Literal('fp16')]),
          // GPUs, as "9.0"; any of them.
          computeCapability: Type.Optional(Type.Array(Type.String())),
          // Flags as /proc/cpuinfo has them; all of them.
          cpuFlags: Type.Optional(Type.Array(Type.String())),
          // Models that its ops can compute: columns of rows and heads.
          widths: Type.Optional(
            Type.Object(
              {
                multipleOf: Type.Integer({ minimum: 1 }),
                mostOfHead: Type.Integer({ minimum: 1 }),
              },
              { additionalProperties: false },
            ),
          ),
        },
        { additionalProperties: false },
      ),
    ),
  },
  { additionalProperties: false },
)

const compiled = Compile(Kernels)

/** Where a session will run. */
export type Chip = {
  readonly provider: 'cpu' | 'cuda'
  readonly precision: Precision
  readonly computeCapability?: string
  readonly cpuFlags: ReadonlySet<string>
}

/** The widths of a model, of which kernels may want some to be even or small. */
export type Widths = Pick<HstuConfig, 'dModel' | 'dqk' | 'dv' | 'headHidden'>

/**
 * The library in `folder` whose custom ops of domain `peregrine` fit chip and model, if any. One that does not fit
 * must not be registered: ONNX Runtime then refuses the graph instead of running the functions that
 * its file has under the same names.
 * @throws {RankError} CONFIG_INVALID when kernels.json is missing or malformed
 */
export function findKernels(folder: string, chip: Chip, widths: Widths): string | undefined {
  const file = `${folder}/kernels.json`
  const { libraries } = check(compiled, readJson(file, 'CONFIG_INVALID'), 'CONFIG_INVALID', file)
  const found = libraries.find((library) => isSafe(library.file) && fits(library, chip, widths))
  return found && `${folder}/${found.file}`
}

type Library = Static<typeof Kernels>['libraries'][number]

function fits(library: Library, chip: Chip, widths: Widths): boolean {
  const { computeCapability, cpuFlags = [], widths: limits } = library
  const { dModel, dqk, dv, headHidden } = widths
  return (
    library.provider === chip.provider &&
    library.precision === chip.precision &&
    (computeCapability?.includes(chip.computeCapability ?? '') ?? true) &&
    cpuFlags.every((flag) => chip.cpuFlags.has(flag)) &&
    (limits === undefined ||
      (Math.max(dqk, dv) <= limits.mostOfHead &&
        [dModel, dqk, dv, headHidden].every((width) => width % limits.multipleOf === 0)))
  )
}

/** Flags of this machine's CPU; none where the system does not say. */
export function cpuFlags(): ReadonlySet<string> {
  try {
    const [, flags = ''] = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8')) ?? []
    return new Set(flags.trim().split(/\s+/))
  } catch {
    return new Set()
  }
}
