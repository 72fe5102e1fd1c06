import { statSync } from 'node:fs'
import { isIP } from 'node:net'
import type { Logger } from 'pino'
import type { ServerConfig } from './config.js'
import { readKeyFile, type StoredKey } from './key-file.js'
import { readTls, type TlsMaterial } from './tls.js'

export type Credentials = {
  /** The keys of now; undefined = none are asked for. */
  readonly keys: (() => readonly StoredKey[]) | undefined
  /** Undefined = plain HTTP. */
  readonly tls: TlsMaterial | undefined
  /** Called with certificates that were read again. */
  onTls(use: (tls: TlsMaterial) => void): void
  /** Reads all files again; what is wrong with one is logged, and what was there before stays. */
  reload(): void
  /** Ends the watching. */
  close(): void
}

/** Whether SIGHUP has something to do: without, it ends the process as it does any other. */
export function hasFiles({ apiKeysFile, tlsCert }: ServerConfig): boolean {
  return apiKeysFile !== '' || tlsCert !== ''
}

type Watched = {
  readonly files: readonly string[]
  readonly read: () => void
  /** The files as they were before they were read last. */
  state: string
}

const WATCH_MS = 5_000

/**
 * API keys and certificates from their files, read again when a file is another. Files are polled:
 * what Kubernetes mounts is replaced through links, which notifications of the system miss.
 * @throws {RankError} CONFIG_INVALID when one cannot be used at the start
 */
export function openCredentials(
  config: ServerConfig,
  log: Logger,
  watchMs: number = WATCH_MS,
): Credentials {
  const { apiKeysFile, tlsCert, tlsKey, tlsClientCa } = config
  const watched: Watched[] = []
  let keys: readonly StoredKey[] | undefined
  let use: (tls: TlsMaterial) => void = () => {}

  if (apiKeysFile !== '') {
    const read = () => {
      keys = readKeyFile(apiKeysFile)
      log.info({ keys: keys.map(({ name }) => name) }, 'API keys read')
    }
    const state = stateOf([apiKeysFile])
    read()
    watched.push({ files: [apiKeysFile], read, state })
  } else if (!isLoopback(config.host) && tlsClientCa === '') {
    log.warn(`listening on ${config.host} without --api-keys-file: whoever reaches it may do all`)
  }

  const files = { cert: tlsCert, key: tlsKey, ...(tlsClientCa !== '' && { ca: tlsClientCa }) }
  const state = stateOf(Object.values(files))
  const tls = tlsCert === '' ? undefined : readTls(files)
  if (tls !== undefined) {
    const read = () => {
      use(readTls(files))
      log.info('certificates read')
    }
    watched.push({ files: Object.values(files), read, state })
  }

  const again = ({ files, read }: Watched) => {
    try {
      read()
    } catch (err) {
      log.error({ err, files }, 'not read: what was there before stays')
    }
  }
  const timer = setInterval(() => {
    for (const one of watched) {
      const found = stateOf(one.files)
      if (found === one.state) continue
      one.state = found
      again(one)
    }
  }, watchMs).unref()

  return {
    keys: keys === undefined ? undefined : () => keys ?? [],
    tls,
    onTls(next) {
      use = next
    },
    reload() {
      for (const one of watched) again(one)
    },
    close() {
      clearInterval(timer)
    },
  }
}

/** Another text when a file, or what its links lead to, is another. */
function stateOf(files: readonly string[]): string {
  const states = files.map((file) => {
    try {
      const { dev, ino, size, mtimeNs } = statSync(file, { bigint: true })
      return `${dev} ${ino} ${size} ${mtimeNs}`
    } catch {
      return 'none' // reading it says why
    }
  })
  return states.join()
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}
