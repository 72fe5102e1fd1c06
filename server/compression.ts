import { constants } from 'node:zlib'
import compress from '@fastify/compress'
import type { FastifyInstance } from 'fastify'

/** Below, compressing costs more time than the network saves. */
const THRESHOLD_BYTES = 32 * 1024

/**
 * Bodies of requests in gzip, deflate or brotli, and large answers for those who accept them: at the cheapest
 * levels, on threads of their own. The body limit counts what a request unpacks to.
 */
export async function addCompression(app: FastifyInstance): Promise<void> {
  await app.register(compress, {
    threshold: THRESHOLD_BYTES,
    encodings: ['br', 'gzip', 'deflate'],
    requestEncodings: ['gzip', 'deflate', 'br'],
    zlibOptions: { level: 1 },
    brotliOptions: { params: { [constants.BROTLI_PARAM_QUALITY]: 1 } },
  })
}
