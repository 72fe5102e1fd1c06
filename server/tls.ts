import { readFileSync } from 'node:fs'
import { createSecureContext } from 'node:tls'
import { RankError } from '../model/errors.js'

/** Contents of PEM files, as Node takes them. */
export type TlsMaterial = {
  /** The server's certificate, then those between it and its authority. */
  readonly cert: Buffer
  readonly key: Buffer
  /** Who signs the clients' certificates; absent = clients need none. */
  readonly ca?: Buffer
  readonly minVersion: 'TLSv1.2'
}

export type TlsFiles = { readonly cert: string; readonly key: string; readonly ca?: string }

/**
 * Reads PEM files and tries them together.
 * @throws {RankError} CONFIG_INVALID: a file cannot be read, is no PEM, or the key is another certificate's
 */
export function readTls({ cert, key, ca }: TlsFiles): TlsMaterial {
  const material = {
    cert: read(cert),
    key: read(key),
    ...(ca !== undefined && { ca: read(ca) }),
    minVersion: 'TLSv1.2',
  } as const
  try {
    createSecureContext(material)
  } catch (cause) {
    const files = [cert, key, ca].filter((file) => file !== undefined).join(', ')
    throw invalid(`${files} must be PEM files that fit each other`, cause)
  }
  return material
}

function read(file: string): Buffer {
  try {
    return readFileSync(file)
  } catch (cause) {
    throw invalid('cannot read a TLS file', cause)
  }
}

function invalid(what: string, cause: unknown): RankError {
  const why = cause instanceof Error ? cause.message : String(cause)
  return new RankError('CONFIG_INVALID', `${what}: ${why}`, { cause })
}
