import { engineSuite } from '../../../test/engine-suite.js'
import type { Bundle } from '../../manifest.js'
import { createCapiEngine } from './engine.js'

engineSuite('capi', (bundle: Bundle) => createCapiEngine({ bundle, workers: 2 }))
