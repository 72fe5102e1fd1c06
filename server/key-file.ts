import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import Type from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from '../model/check.js'
import { RankError } from '../model/errors.js'

/** What a key may do: rank and all that belongs to users, change what is served, read /metrics. */
export const SCOPES = ['rank', 'admin', 'metrics'] as const
export type Scope = (typeof SCOPES)[number]

/** A key as the service knows it: it never has the secret itself. */
export type StoredKey = {
  /** At most 64 letters, digits, `.`, `_`, `-`: for logs and labels. */
  readonly name: string
  readonly scopes: readonly Scope[]
  /** Most requests per second, of each replica; absent = no limit of its own. */
  readonly requestsPerSec?: number
  /** Most predicted milliseconds of compute that it may ask for per second; absent = no limit of its own. */
  readonly workMsPerSec?: number
  /** Weight against the other keys where work has to wait; 1 where the file has none. */
  readonly share: number
  /** SHA-256 of the secret, 32 bytes. */
  readonly digest: Buffer
}

const PREFIX = 'pgr_' // lets scanners of repositories and logs find a leaked key
const SECRET_BYTES = 32

const EntrySchema = Type.Object(
  {
    name: Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$' }),
    sha256: Type.String({ pattern: '^[0-9a-f]{64}$' }),
    scopes: Type.Array(Type.Unsafe<Scope>(Type.String({ pattern: `^(${SCOPES.join('|')})$` })), {
      minItems: 1,
    }),
    requestsPerSec: Type.Optional(Type.Number({ minimum: 0.001, maximum: 1e6 })),
    workMsPerSec: Type.Optional(Type.Number({ minimum: 0.001, maximum: 1e9 })),
    share: Type.Optional(Type.Number({ minimum: 0.001, maximum: 1e6 })),
  },
  { additionalProperties: false },
)
const KeyFile = Compile(
  Type.Object({ keys: Type.Array(EntrySchema, { minItems: 1 }) }, { additionalProperties: false }),
)

/** What an entry of the key file has to be. */
export const Entry = Compile(EntrySchema)

/**
 * The keys of a file `{"keys": [{name, sha256, scopes, requestsPerSec?, workMsPerSec?, share?}, …]}`.
 * @throws {RankError} CONFIG_INVALID naming the file and its fault
 */
export function readKeyFile(file: string): readonly StoredKey[] {
  const { keys } = check(KeyFile, readJson(file), 'CONFIG_INVALID', file)
  for (const field of ['name', 'sha256'] as const) {
    const seen = new Set<string>()
    for (const { name, [field]: value } of keys) {
      if (seen.has(value))
        throw invalid(`${file}: every ${field} must be there once, got it again in "${name}"`)
      seen.add(value)
    }
  }
  return keys.map(({ sha256, share = 1, ...rest }) => ({
    ...rest,
    share,
    digest: Buffer.from(sha256, 'hex'),
  }))
}

/** A new secret of 256 random bits. */
export function newSecret(): string {
  return PREFIX + randomBytes(SECRET_BYTES).toString('base64url')
}

/** Not a slow password hash: 256 random bits cannot be guessed, and every request is hashed. */
export function digestOf(secret: string): Buffer {
  return createHash('sha256').update(secret).digest()
}

function readJson(file: string): unknown {
  try {
    return JSON.parse(readFileSync(file, 'utf8'))
  } catch (cause) {
    // The parser's message quotes the file.
    const why = cause instanceof SyntaxError ? 'it is no JSON' : messageOf(cause)
    throw invalid(`cannot read the API keys in ${file}: ${why}`)
  }
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}

function invalid(message: string): RankError {
  return new RankError('CONFIG_INVALID', message)
}
