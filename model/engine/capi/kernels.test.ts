import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { exportModel, type Scope, tempFolder } from '../../../test/fixtures.js'
import type { EngineEvent } from '../engine.js'
import { createCapiEngine } from './engine.js'
import { type Chip, cpuFlags, findKernels } from './kernels.js'

/** A folder with a kernels.json; the first library has no conditions but provider and precision. */
function kernelFolder(scope: Scope, libraries: readonly object[]): string {
  const folder = tempFolder(scope)
  writeFileSync(`${folder}/kernels.json`, JSON.stringify({ libraries }))
  return folder
}

const WIDTHS = { dModel: 96, dqk: 24, dv: 24, headHidden: 96 }

describe('findKernels', () => {
  const hopper = {
    file: 'sm90.so',
    provider: 'cuda',
    precision: 'fp16',
    computeCapability: ['9.0'],
  }
  const amx = {
    file: 'amx.so',
    provider: 'cpu',
    precision: 'fp32',
    arithmetic: 'bf16',
    kv: 'bf16',
    kvTiles: true,
    cpuFlags: ['amx_tile', 'amx_bf16'],
  }
  const ARITHMETIC = { cuda: 'fp16', cpu: 'bf16' }

  test('names a library only where provider, precision and chip all fit', (t) => {
    const folder = kernelFolder(t, [hopper, { ...amx, file: 'not-built.so' }, amx])
    for (const { file } of [hopper, amx]) writeFileSync(`${folder}/${file}`, '')
    for (const provider of ['cpu', 'cuda'] as const) {
      for (const precision of ['fp32', 'fp16'] as const) {
        for (const computeCapability of ['8.0', '9.0', '10.0', undefined]) {
          for (const flags of [[], ['amx_tile'], ['amx_tile', 'amx_bf16', 'avx2']]) {
            const chip: Chip = {
              provider,
              precision,
              cpuFlags: new Set(flags),
              ...(computeCapability && { computeCapability }),
            }
            const expected =
              provider === 'cuda'
                ? precision === 'fp16' && computeCapability === '9.0' && 'sm90.so'
                : precision === 'fp32' && flags.length === 3 && 'amx.so'
            const found = findKernels(folder, chip, WIDTHS)
            assert.equal(
              found?.library,
              expected ? `${folder}/${expected}` : undefined,
              JSON.stringify(chip),
            )
            assert.equal(found?.arithmetic, expected ? ARITHMETIC[provider] : undefined)
            assert.equal(found?.kv, expected === 'amx.so' ? 'bf16' : undefined)
            assert.equal(found?.kvTiles, expected === 'amx.so' ? true : undefined)
          }
        }
      }
    }
  })

  test('names a library only for models whose widths it computes', (t) => {
    const widths = { multipleOf: 8, mostOfHead: 256 }
    const folder = kernelFolder(t, [{ file: 'k.so', provider: 'cpu', precision: 'fp32', widths }])
    const chip: Chip = { provider: 'cpu', precision: 'fp32', cpuFlags: new Set() }
    writeFileSync(`${folder}/k.so`, '')
    assert.equal(findKernels(folder, chip, WIDTHS)?.library, `${folder}/k.so`)
    for (const change of [{ dModel: 100 }, { dqk: 12 }, { dv: 264 }, { headHidden: 6 }]) {
      assert.equal(findKernels(folder, chip, { ...WIDTHS, ...change }), undefined)
    }
  })

  test('takes no file from outside its folder, and no kernels.json that is none', (t) => {
    const chip: Chip = { provider: 'cpu', precision: 'fp32', cpuFlags: new Set() }
    const outside = { file: '../x.so', provider: 'cpu', precision: 'fp32' }
    const above = kernelFolder(t, [outside])
    mkdirSync(`${above}/inner`)
    renameSync(`${above}/kernels.json`, `${above}/inner/kernels.json`)
    writeFileSync(`${above}/x.so`, '')
    assert.equal(findKernels(`${above}/inner`, chip, WIDTHS), undefined)
    assert.throws(() => findKernels(tempFolder(t), chip, WIDTHS), { code: 'CONFIG_INVALID' })
    const wrong = kernelFolder(t, [{ ...outside, provider: 'tpu' }])
    assert.throws(() => findKernels(wrong, chip, WIDTHS), { code: 'CONFIG_INVALID' })
  })

  test('knows the flags of this CPU', { skip: process.platform !== 'linux' }, () => {
    if (process.arch === 'x64') assert.ok(cpuFlags().has('sse2'))
  })
})

describe('engine capi: kernel libraries', () => {
  const model = exportModel({ after })
  const hasCompiler = spawnSync('cc', ['--version']).status === 0

  /** Registers nothing, and says in the environment that it was asked to. */
  const SOURCE = `#include <stdlib.h>
    void *RegisterCustomOps(void *options, const void *api) {
      (void)options; (void)api; setenv("PEREGRINE_TEST_KERNELS", "registered", 1); return 0;
    }`

  test('are registered before a session is made', {
    skip: !hasCompiler && 'no C compiler',
  }, async (t) => {
    const folder = kernelFolder(t, [{ file: 'k.so', provider: 'cpu', precision: 'fp32' }])
    writeFileSync(`${folder}/k.c`, SOURCE)
    const made = spawnSync('cc', ['-shared', '-fPIC', '-o', `${folder}/k.so`, `${folder}/k.c`])
    assert.equal(made.status, 0, String(made.stderr))
    const events: string[] = []
    const engine = await createCapiEngine({
      bundle: model.bundle,
      kernels: folder,
      onEvent: (event) => events.push(event.kind),
    })
    await engine.close()
    assert.deepEqual(events, ['kernels'])
    assert.equal(process.env.PEREGRINE_TEST_KERNELS, 'registered')
  })

  test('that refuse this process are not registered, and say why', {
    skip: !hasCompiler && 'no C compiler',
  }, async (t) => {
    const folder = kernelFolder(t, [{ file: 'k.so', provider: 'cpu', precision: 'fp32' }])
    const refusing = 'const char *PeregrineKernelsRefusal(void) { return "no tiles today"; }'
    const registering = 'void *RegisterCustomOps(void) { __builtin_trap(); }'
    writeFileSync(`${folder}/k.c`, `${refusing}\n${registering}\n`)
    const made = spawnSync('cc', ['-shared', '-fPIC', '-o', `${folder}/k.so`, `${folder}/k.c`])
    assert.equal(made.status, 0, String(made.stderr))
    const events: EngineEvent[] = []
    const engine = await createCapiEngine({
      bundle: model.bundle,
      kernels: folder,
      onEvent: (event) => events.push(event),
    })
    assert.equal(engine.stats().kernels, undefined)
    await engine.close()
    const warning = `${folder}/k.so not used: no tiles today`
    assert.deepEqual(events, [{ kind: 'kernelsRefused', library: `${folder}/k.so`, warning }])
  })

  test('that do not load are refused with the file and the reason', async (t) => {
    const folder = kernelFolder(t, [{ file: 'k.so', provider: 'cpu', precision: 'fp32' }])
    writeFileSync(`${folder}/k.so`, 'no library')
    await assert.rejects(createCapiEngine({ bundle: model.bundle, kernels: folder }), {
      code: 'MODEL_CONTRACT',
      message: /does not load: .*k\.so/s,
    })
  })
})
