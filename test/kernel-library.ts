// The kernel libraries, built once per build of the tests.
import { spawnSync } from 'node:child_process'
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cpuFlags, findKernels, refusalOf } from '../model/engine/capi/kernels.js'
import { type Scope, tempFolder } from './fixtures.js'

const DIST = fileURLToPath(new URL('..', import.meta.url))
const SCRIPT = fileURLToPath(new URL('../../model/kernels/build.sh', import.meta.url))

/** Widths that no kernel minds. */
const PLAIN_WIDTHS = { dModel: 64, dqk: 16, dv: 16, headHidden: 64 }

export type BuiltKernels = {
  /** With kernels.json and the libraries in it. */
  readonly folder: string
  /** Why the CPU's kernels cannot be tested here; REQUIRE_KERNELS=1 makes that a failure. */
  readonly skip: string | false
}

/** @throws when they do not build, or cannot be tested although REQUIRE_KERNELS is set */
export function builtKernels(): BuiltKernels {
  const folder = `${DIST}kernels`
  const skip = whyNot(folder)
  if (skip !== undefined && process.env.REQUIRE_KERNELS) throw new Error(skip)
  return { folder, skip: skip ?? false }
}

function whyNot(folder: string): string | undefined {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'kernels are for linux x64'
  if (!existsSync(folder)) {
    if (spawnSync('g++', ['--version']).status !== 0) return 'no g++ to build the kernels with'
    const work = mkdtempSync(`${DIST}kernels-`)
    buildKernels(work)
    try {
      renameSync(work, folder)
    } catch {
      // Another test's process was first.
      rmSync(work, { recursive: true })
    }
  }
  const chip = { provider: 'cpu', precision: 'fp32', cpuFlags: cpuFlags() } as const
  const found = findKernels(folder, chip, PLAIN_WIDTHS)
  if (found === undefined) return 'this CPU has no AMX bf16'
  return refusalOf(found)
}

/** A folder of the same libraries for engines that keep K/V in the bundle's precision: kernels round it in each run. */
export function withFloat32Kv(scope: Scope, folder: string): string {
  const other = tempFolder(scope)
  const { libraries } = JSON.parse(readFileSync(`${folder}/kernels.json`, 'utf8'))
  const others = libraries.map(({ kv: _, ...library }: { kv?: string; file: string }) => library)
  writeFileSync(`${other}/kernels.json`, JSON.stringify({ libraries: others }))
  for (const { file } of others) symlinkSync(resolve(folder, file), `${other}/${file}`)
  return other
}

/** Runs the build script into an existing folder. */
export function buildKernels(folder: string): void {
  const made = spawnSync(SCRIPT, [folder], { encoding: 'utf8' })
  if (made.status !== 0) throw new Error(`${SCRIPT} failed: ${made.stderr}`)
}
