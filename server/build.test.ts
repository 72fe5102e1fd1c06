import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { Registry } from 'prom-client'
import { readBuild } from './build.js'
import { addBuildInfo } from './metrics.js'

test('says which version, commit, Node and ONNX Runtime run, also in the metrics', async () => {
  const build = readBuild()
  const { version }: { version: string } = JSON.parse(readFileSync('package.json', 'utf8'))
  assert.equal(build.version, version)
  assert.match(build.commit, /^([0-9a-f]{12}|unknown)$/)
  assert.equal(`v${build.node}`, process.version)
  assert.match(build.onnxruntime, /^1\.\d+\.\d+$/)
  const registry = new Registry()
  addBuildInfo(registry, build)
  const { commit, node, onnxruntime } = build
  assert.match(
    await registry.metrics(),
    new RegExp(
      `^peregrine_build_info\\{version="${version}",commit="${commit}",node="${node}",onnxruntime="${onnxruntime}"\\} 1$`,
      'm',
    ),
  )
})
