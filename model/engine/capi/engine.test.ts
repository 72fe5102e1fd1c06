import { engineSuite } from '../../../test/engine-suite.js'
import { hostileGraphs } from '../../../test/hostile-graphs.js'
import type { Bundle } from '../../manifest.js'
import { createCapiEngine } from './engine.js'

const create = (bundle: Bundle) => createCapiEngine({ bundle, workers: 2 })
engineSuite('capi', create)
hostileGraphs('capi', create)
