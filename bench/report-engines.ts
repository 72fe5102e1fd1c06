import type { EnginesResult } from './engines.js'
import { figure, table } from './markdown.js'

/** The section of cpu.md on the two engines. */
export function enginesSection({ comparisons, memory }: EnginesResult): string[] {
  return [
    '## Engines',
    '',
    'The engine alone, `capi` and `node` by turns; medians. One call at a time with all cores, and requests per second of several callers with one thread each.',
    '',
    ...table(
      ['model', 'what', 'node', 'capi', 'capi / node'],
      comparisons.map(({ model, what, node, capi, isRate }) => {
        const unit = isRate ? '/s' : ' ms'
        const ratio = (capi / node).toFixed(2)
        return [model, what, `${figure(node)}${unit}`, `${figure(capi)}${unit}`, ratio]
      }),
    ),
    '',
    'Anonymous memory that an engine adds to its process, MiB; `node` has a set of sessions per worker, `capi` one for all over one copy of the weights and of what is packed from them:',
    '',
    ...table(
      ['engine', 'workers', 'MiB'],
      memory.map(({ engine, workers, anonymousMiB }) => [
        engine,
        String(workers),
        String(anonymousMiB),
      ]),
    ),
    '',
  ]
}
