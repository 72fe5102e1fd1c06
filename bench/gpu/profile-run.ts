// profile-run.js BUNDLE prefill|hit|rank M [KERNELS]: a few runs, for a profiler around it.
import { randomHistory, randomRows } from '../../falcon/calibrate.js'
import { createCapiEngine } from '../../model/engine/capi/engine.js'
import { openBundle } from '../../model/manifest.js'
import { createRandom } from '../../model/random.js'
import { QUERY_TIME } from '../workload.js'
import { PROFILED_RUNS } from './profile.js'

const [folder = '', graph = '', m = '1024', kernels] = process.argv.slice(2)
const bundle = openBundle(folder)
const { manifest } = bundle
const random = createRandom(1)
const engine = await createCapiEngine({
  bundle,
  provider: 'cuda',
  ...(kernels === undefined ? {} : { kernels }),
})
const history = randomHistory(manifest, manifest.config.maxTokens, random)
const candidates = randomRows(manifest, Number(m), random)
for (let i = 0; i < PROFILED_RUNS; i++) {
  if (graph === 'rank') await engine.rank([{ history, candidates, queryTime: QUERY_TIME }])
  else {
    const handle = await engine.prefill(history)
    if (graph === 'hit') await engine.score(handle, candidates, QUERY_TIME)
    engine.release(handle)
  }
}
await engine.close()
