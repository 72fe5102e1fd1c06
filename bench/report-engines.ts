import type { EnginesResult } from './engines.js'
import type { Machine } from './machine.js'
import { figure, table } from './markdown.js'
import { spreadText } from './stats.js'

/** The page engines.md. */
export function enginesPage(machine: Machine, { comparisons, memory }: EnginesResult): string {
  return [
    '# The two engines on a CPU',
    '',
    'Written by `npm run bench:engines`; do not edit.',
    '',
    `* ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; load before the run ${machine.loadBefore}`,
    `* Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}, commit ${machine.commit}, ${machine.date}`,
    '* Models: the paper shape (3 layers, width 512, 8 heads, 2,048 tokens, random weights) and the demo, float32',
    '',
    'The engine alone, `capi` and `node` by turns, each of them first in every second round; rounds of a quarter of a second and more; medians, and of the rounds’ ratios the quartiles too. One call after the other with all cores, and requests per second of several callers with one thread each.',
    '',
    ...table(
      ['model', 'what', 'node', 'capi', 'capi / node'],
      comparisons.map(({ model, what, node, capi, isRate, ratio }) => {
        const unit = isRate ? '/s' : ' ms'
        const medians = [`${figure(node)}${unit}`, `${figure(capi)}${unit}`]
        return [model, what, ...medians, spreadText(ratio)]
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
  ].join('\n')
}
