import { RankError } from '../errors.js'
import type { GraphContract, GraphValue } from '../manifest.js'

/** What a loaded graph says of itself; a value that is no tensor has no dims. */
export type GraphSignature = {
  readonly inputs: readonly FoundValue[]
  readonly outputs: readonly FoundValue[]
}
export type FoundValue = Pick<GraphValue, 'name' | 'type'> & {
  readonly dims?: readonly (number | string)[]
}

/**
 * Holds a loaded graph against what the manifest promises of it.
 * @throws {RankError} MODEL_CONTRACT naming the first value that differs
 */
export function checkContract(file: string, found: GraphSignature, contract: GraphContract): void {
  const compare = (
    side: 'input' | 'output',
    got: readonly FoundValue[],
    expected: readonly GraphValue[],
  ) => {
    const names = (values: readonly { readonly name: string }[]) =>
      values.map(({ name }) => name).sort()
    if (names(got).join() !== names(expected).join()) {
      throw new RankError(
        'MODEL_CONTRACT',
        `${file} must have the ${side}s ${names(expected).join(', ')}, got ${names(got).join(', ')}`,
      )
    }
    for (const value of expected) {
      const other = got.find(({ name }) => name === value.name)
      const wanted = `${value.type} (${value.dims.join(', ')})`
      const seen =
        other?.dims === undefined ? 'no tensor' : `${other.type} (${other.dims.join(', ')})`
      if (seen !== wanted) {
        throw new RankError(
          'MODEL_CONTRACT',
          `${file}: ${side} ${value.name} must be ${wanted}, got ${seen}`,
        )
      }
    }
  }
  compare('input', found.inputs, contract.inputs)
  compare('output', found.outputs, contract.outputs)
}
