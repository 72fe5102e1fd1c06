import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'

const REGISTRY = 'https://registry.npmjs.org/'

type Locked = {
  readonly dev?: boolean
  readonly integrity?: string
  readonly resolved?: string
}

const read = (file: string) => JSON.parse(readFileSync(file, 'utf8'))

describe('dependencies', () => {
  test('have exact versions', () => {
    const { dependencies, devDependencies, overrides } = read('package.json')
    const all = { ...dependencies, ...devDependencies, ...overrides }
    assert.ok(Object.keys(all).length > 10)
    for (const [name, version] of Object.entries(all)) {
      assert.match(String(version), /^\d+\.\d+\.\d+(-\d+)?$/, name)
    }
  })

  test('that are shipped are locked with their hashes, and come from the registry', () => {
    const packages: Record<string, Locked> = read('package-lock.json').packages
    const shipped = Object.entries(packages).filter(([path, { dev }]) => path !== '' && !dev)
    assert.ok(shipped.length > 50)
    for (const [path, { integrity, resolved = REGISTRY }] of shipped) {
      assert.match(integrity ?? '', /^sha512-/, path)
      assert.ok(resolved.startsWith(REGISTRY), path)
    }
  })

  test('run no scripts when they are installed', () => {
    assert.match(readFileSync('.npmrc', 'utf8'), /^ignore-scripts=true$/m)
  })
})
