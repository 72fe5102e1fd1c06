import { KV_MODES } from '../cache/decide.js'
import { DEFAULT_EVENT_LIMITS } from '../cache/events.js'
import { KV_CODECS } from '../model/engine/codec/graphs.js'
import { ENGINES } from '../model/engine/create.js'
import { DEMO_BUNDLE } from './commands/demo.js'
import { choice, integer, origins, redisUrl, text, texts, toggle } from './knob.js'

const MiB = 2 ** 20

/** Every setting of the server. Flags are `--kebab-case`, variables `PEREGRINE_UPPER_CASE`. */
export const KNOBS = {
  bundle: texts(
    'Bundles to serve, several separated by commas; requests that name no model get the first',
    'the path of a bundle directory',
    DEMO_BUNDLE,
  ),
  modelsDir: text(
    'Folder whose subfolders are bundles, watched; --bundle has no default then',
    'the path of a directory',
    '',
  ),
  defaultModel: text(
    'Model that requests get which name none; none = the first that is loaded',
    'the name of a model',
    '',
  ),
  maxModels: integer('Most versions of models at once', 8, 1, 1000),
  promoteRampSec: integer(
    'How long a promotion takes to move the users, so that their K/V is not made all at once',
    20,
    0,
    86_400,
  ),
  host: text('Address to listen on', 'a host name or address', '127.0.0.1'),
  port: integer('Port to listen on; 0 picks a free one', 8080, 0, 65_535),
  apiKeysFile: text('API keys, see `peregrine key`; none = everybody may do all', 'a file', ''),
  tlsCert: text('Certificate for HTTPS, read again when it changes', 'a PEM file', ''),
  tlsKey: text('Its private key', 'a PEM file', ''),
  tlsClientCa: text('Who signs the certificates that clients shall have', 'a PEM file', ''),
  corsOrigins: origins('Origins whose pages may call'),
  maxConnections: integer('Most connections; more are closed at once', 4096, 1, 1_000_000),
  logLevel: choice('Least severe level that is logged', 'info', [
    'trace',
    'debug',
    'info',
    'warn',
    'error',
    'fatal',
    'silent',
  ]),
  playground: toggle('Serve the playground at /; the demo model brings sample users', true),
  bodyLimitBytes: integer('Largest request body', 16 * MiB, 1024, 512 * MiB),
  maxHistoryEvents: integer(
    'Most events of one request, over all histories and series',
    100_000,
    1,
    10_000_000,
  ),
  maxCandidates: integer('Most candidates of one request', 20_000, 1, 10_000_000),
  maxBatchRequests: integer('Most requests of one batch', 64, 1, 10_000),
  // What a caller with a timeout of a few hundred milliseconds can still use; a longer queue serves
  // nobody better, it only makes everybody late.
  maxQueueMs: integer(
    'Longest predicted wait of a request for its turn; what would wait longer is refused with 429',
    100,
    1,
    600_000,
  ),
  bodyBudgetBytes: integer(
    'Memory for request bodies at once; more are refused with 429',
    256 * MiB,
    1024,
    2 ** 44,
  ),
  kvBytes: integer(
    'Memory for cached K/V, with the share of the GPU; 0 = 512 MiB, or all that a GPU has for it',
    0,
    0,
    2 ** 44,
  ),
  kv: choice(
    'When K/V is kept and used: auto = where it is predicted to cost less, always, never',
    'auto',
    KV_MODES,
  ),
  gpuKvBytes: integer(
    'Share of it on the GPU, engine capi; 0 = half of what is free after loading',
    0,
    0,
    2 ** 44,
  ),
  engine: choice('What runs the model; auto = capi where it runs, else node', 'auto', ENGINES),
  workers: integer('Runs at a time; 0 = from the cores', 0, 0, 1024),
  threadsPerWorker: integer('Threads of each run; 0 = from the cores', 0, 0, 1024),
  provider: choice('Where inference runs', 'cpu', ['cpu', 'cuda']),
  deviceId: integer('CUDA device', 0, 0, 1023),
  cudaFallback: toggle('Use the CPU when CUDA is missing', false),
  kernels: text(
    'Kernel libraries, engine capi: auto = the ones installed or built, off = none',
    'auto, off or a folder with kernels.json',
    'auto',
  ),
  microBatchSize: integer('Candidates of one micro-batch; 0 = calibrate', 0, 0, 1_048_576),
  redisUrl: redisUrl(
    'Redis for K/V and stored histories, shared by all replicas; none = in this process',
  ),
  redisCodec: choice('How K/V is written to Redis', 'fp16', KV_CODECS),
  redisConnections: integer('Connections that K/V is read by', 1, 1, 256),
  kvTtlSec: integer('How long K/V stays in Redis after its last write', 86_400, 1, 31_536_000),
  maxStoredEvents: integer(
    'Events of a user that are stored; the oldest go',
    DEFAULT_EVENT_LIMITS.maxStoredEvents,
    1,
    1_000_000,
  ),
  eventsTtlSec: integer(
    'How long a user is stored after the last event',
    DEFAULT_EVENT_LIMITS.ttlSec,
    1,
    315_360_000,
  ),
  windowSlack: integer(
    'Events that the window of a full history moves at a time; 0 = a sixteenth of it',
    0,
    0,
    1_048_576,
  ),
  drainDelayMs: integer(
    'How long a stop still takes new connections, /readyz at 503, until load balancers know',
    0,
    0,
    600_000,
  ),
  shutdownTimeoutMs: integer('How long a stop waits for requests in flight', 10_000, 0, 600_000),
}
