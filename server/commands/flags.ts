import { ENGINES, type EngineChoice } from '../../model/engine/create.js'
import { RankError } from '../../model/errors.js'

/** A flag's integer. @throws {RankError} INVALID_REQUEST with the range and what was got */
export function integer(flag: string, text: string, min: number, max: number): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isInteger(value) || value < min || value > max) {
    throw new RankError(
      'INVALID_REQUEST',
      `${flag} must be an integer from ${min} to ${max}, got ${JSON.stringify(text)}`,
    )
  }
  return value
}

/** @throws {RankError} INVALID_REQUEST */
export function providerFlag(value: string): 'cpu' | 'cuda' {
  if (value === 'cpu' || value === 'cuda') return value
  throw new RankError('INVALID_REQUEST', `--provider must be cpu or cuda, got ${value}`)
}

/** @throws {RankError} INVALID_REQUEST */
export function engineFlag(value: string): EngineChoice {
  const engine = ENGINES.find((name) => name === value)
  if (engine !== undefined) return engine
  throw new RankError('INVALID_REQUEST', `--engine must be ${ENGINES.join(' or ')}, got ${value}`)
}

/** A flag's number above 0. @throws {RankError} INVALID_REQUEST */
export function positive(flag: string, text: string): number {
  const value = Number(text)
  if (Number.isFinite(value) && value > 0) return value
  throw new RankError(
    'INVALID_REQUEST',
    `${flag} must be a positive number, got ${JSON.stringify(text)}`,
  )
}
