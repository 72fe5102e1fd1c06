import { existsSync, readFileSync } from 'node:fs'
import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from '../../check.js'
import { type HstuConfig, readJson } from '../../config.js'
import { type Arithmetic, isSafe, type Precision } from '../../manifest.js'
import { loadLibrary } from './native.js'
import type { Pointer } from './ort.js'

/** What a folder of kernel libraries says of itself, in kernels.json. */
const KernelsFile = Type.Object(
  {
    libraries: Type.Array(
      Type.Object(
        {
          file: Type.String({ minLength: 1, maxLength: 256 }),
          provider: Type.Union([Type.Literal('cpu'), Type.Literal('cuda')]),
          precision: Type.Union([Type.Literal('fp32'), Type.Literal('fp16')]),
          // What it multiplies in, where that is less than the bundle's precision.
          arithmetic: Type.Optional(Type.Literal('bf16')),
          // What its attention takes K/V in beside the bundle's precision, and what it has an op to round to.
          kv: Type.Optional(Type.Literal('bf16')),
          // Whether it has that as tiles, too: K/V that no run packs.
          kvTiles: Type.Optional(Type.Boolean()),
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

const compiled = Compile(KernelsFile)

/** Where a session will run. */
export type Chip = {
  readonly provider: 'cpu' | 'cuda'
  readonly precision: Precision
  readonly computeCapability?: string
  readonly cpuFlags: ReadonlySet<string>
}

/** A library whose custom ops of domain `peregrine` replace the graphs' functions. */
export type Kernels = {
  readonly library: string
  /** What products are computed in; sums are float32. */
  readonly arithmetic: Arithmetic
  /** What they take K/V in beside the bundle's precision, losing nothing that they would not lose anyway. */
  readonly kv?: 'bf16'
  /** And have it as tiles: see kv-tiles.ts. */
  readonly kvTiles?: boolean
}

/** The widths of a model, of which kernels may want some to be even or small. */
export type Widths = Pick<HstuConfig, 'dModel' | 'dqk' | 'dv' | 'headHidden'>

/**
 * The library in `folder` whose custom ops of domain `peregrine` fit chip and model, if any. One that does not fit
 * must not be registered: ONNX Runtime then refuses the graph instead of running the functions that
 * its file has under the same names.
 * @throws {RankError} CONFIG_INVALID when kernels.json is missing or malformed
 */
export function findKernels(folder: string, chip: Chip, widths: Widths): Kernels | undefined {
  const file = `${folder}/kernels.json`
  const { libraries } = check(compiled, readJson(file, 'CONFIG_INVALID'), 'CONFIG_INVALID', file)
  // A folder holds what could be built for it: some libraries of the list may not be there.
  const found = libraries.find(
    (library) =>
      isSafe(library.file) &&
      fits(library, chip, widths) &&
      existsSync(`${folder}/${library.file}`),
  )
  if (found === undefined) return undefined
  const { file: name, arithmetic = found.precision, kv, kvTiles } = found
  return {
    library: `${folder}/${name}`,
    arithmetic,
    ...(kv && { kv }),
    ...(kvTiles && { kvTiles }),
  }
}

/**
 * Why this process may not use a library that fits, as it says itself: Linux can refuse AMX, for
 * example. Undefined where nothing speaks against it, and where it does not load at all: ONNX Runtime
 * then has the better reason.
 */
export function refusalOf({ library }: Kernels): string | undefined {
  try {
    return loadLibrary(library).func('const char* PeregrineKernelsRefusal()')() ?? undefined
  } catch {
    return undefined
  }
}

/** Begins a copy from page-locked memory on a stream; what went wrong, if so. */
export type CopyIn = (to: Pointer, from: Pointer, bytes: number, stream: Pointer) => string | null

/** The library's own copy, which takes less of a captured run than CUDA's; undefined where it has none. */
export function copyOf(library: string): CopyIn | undefined {
  try {
    return loadLibrary(library).func('const char* hstuCopy(void*, void*, int64_t, void*)')
  } catch {
    return undefined
  }
}

type Library = Static<typeof KernelsFile>['libraries'][number]

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
