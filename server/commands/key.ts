import { parseArgs } from 'node:util'
import { check } from '../../model/check.js'
import { digestOf, Entry, newSecret, SCOPES } from '../key-file.js'
import { positive } from './flags.js'

export const KEY_HELP = `peregrine key NAME [--scopes ${SCOPES.join(',')}] [--requests-per-sec N] [--share N]
    makes an API key: prints it, this once, and its entry for the "keys" of --api-keys-file`

/** @throws {RankError} INVALID_REQUEST when no entry can be made of the arguments */
export function keyCommand(args: string[]): number {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      scopes: { type: 'string', default: 'rank' },
      'requests-per-sec': { type: 'string' },
      share: { type: 'string' },
    },
  })
  const { scopes, share, 'requests-per-sec': rate } = values
  const secret = newSecret()
  const entry = {
    name: positionals.join(' '),
    sha256: digestOf(secret).toString('hex'),
    scopes: scopes.split(',').map((scope) => scope.trim()),
    ...(rate !== undefined && { requestsPerSec: positive('--requests-per-sec', rate) }),
    ...(share !== undefined && { share: positive('--share', share) }),
  }
  const text = JSON.stringify(check(Entry, entry, 'INVALID_REQUEST', 'the key’s'))
  process.stdout.write(`key    ${secret}\nentry  ${text}\n`)
  return 0
}
