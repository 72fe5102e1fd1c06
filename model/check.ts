import type { TSchema } from 'typebox'
import type { Validator } from 'typebox/compile'
import type { TLocalizedValidationError } from 'typebox/error'
import { type ErrorCode, RankError } from './errors.js'

/** The first fault of a failed schema check, as a JSON pointer and a sentence with what was got. */
export type Fault = { readonly path: string; readonly message: string }

/**
 * Untrusted `value`, narrowed to the schema's type.
 * @throws {RankError} `code` naming `what`, the JSON pointer, what was expected and what was got
 */
export function check<T extends TSchema, S>(
  schema: Validator<Record<never, never>, T, S>,
  value: unknown,
  code: ErrorCode,
  what: string,
): S {
  if (schema.Check(value)) return value
  const { path, message } = firstFault(schema.Errors(value), value)
  throw new RankError(code, `${what} ${path || '/'} ${message}`, { path })
}

/** Prefers "must not have …" to the bare "schema is false" that the validator reports beside it. */
export function firstFault(errors: readonly TLocalizedValidationError[], value: unknown): Fault {
  const error = errors.find(({ keyword }) => keyword !== 'boolean') ?? errors[0]
  if (error === undefined) return { path: '', message: 'is invalid' }
  const path = error.instancePath
  if (error.keyword === 'additionalProperties') {
    return { path, message: `has unknown fields: ${error.params.additionalProperties.join(', ')}` }
  }
  if (error.keyword === 'required') {
    return { path, message: `lacks the fields: ${error.params.requiredProperties.join(', ')}` }
  }
  if (error.keyword === 'const') {
    return {
      path,
      message: `must be ${show(error.params.allowedValue)}, got ${show(at(value, path))}`,
    }
  }
  return { path, message: `${error.message}, got ${show(at(value, path))}` }
}

/** JSON of a value, shortened: what an error message may quote. */
export function show(value: unknown): string {
  const text = typeof value === 'number' ? String(value) : stringify(value)
  return text.length > 80 ? `${text.slice(0, 80)}…` : text
}

/** JSON.parse takes any depth, JSON.stringify runs out of stack. */
function stringify(value: unknown): string {
  try {
    return JSON.stringify(value) ?? 'nothing'
  } catch {
    return 'a value that is nested too deep'
  }
}

/** A name as one step of a JSON pointer (RFC 6901). */
export function pointerStep(name: string): string {
  return name.replaceAll('~', '~0').replaceAll('/', '~1')
}

/** What a JSON pointer points to. */
export function at(value: unknown, path: string): unknown {
  let found = value
  for (const key of path.split('/').slice(1)) {
    if (typeof found !== 'object' || found === null) return undefined
    found = Reflect.get(found, key.replaceAll('~1', '/').replaceAll('~0', '~'))
  }
  return found
}
