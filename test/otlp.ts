// A collector of OpenTelemetry traces for tests: real HTTP, and a decoder that owes nothing to the SDK.
import { once } from 'node:events'
import { createServer } from 'node:http'
import { BinaryReader, WireType } from '@bufbuild/protobuf/wire'
import type { Scope } from './fixtures.js'

export type CollectedSpan = {
  readonly traceId: string
  readonly spanId: string
  /** Empty for a root. */
  readonly parentSpanId: string
  readonly name: string
  /** 2 = server. */
  readonly kind: number
  readonly startNs: bigint
  readonly endNs: bigint
  readonly attributes: { readonly [name: string]: string | number | boolean }
  /** 0 = unset, 2 = error. */
  readonly status: number
  /** Of the process. */
  readonly resource: CollectedSpan['attributes']
}

export type Collector = {
  readonly url: string
  readonly spans: readonly CollectedSpan[]
  /** Paths and content types of the posts. */
  readonly posts: readonly string[]
  /** Status of what follows. */
  answer(status: number): void
}

export async function startCollector(scope: Scope): Promise<Collector> {
  const spans: CollectedSpan[] = []
  const posts: string[] = []
  let status = 200
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    posts.push(`${request.url} ${request.headers['content-type']}`)
    if (status === 200) spans.push(...decodeSpans(Buffer.concat(chunks)))
    response.writeHead(status).end()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  scope.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const address = server.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  return {
    ...{ url: `http://127.0.0.1:${port}`, spans, posts },
    answer(next) {
      status = next
    },
  }
}

/** Fields of a message by number, each as often as it came: bytes, or a number. */
type Fields = ReadonlyMap<number, readonly (Uint8Array | bigint)[]>

function fieldsOf(bytes: Uint8Array): Fields {
  const reader = new BinaryReader(bytes)
  const fields = new Map<number, (Uint8Array | bigint)[]>()
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag()
    const value =
      type === WireType.LengthDelimited
        ? reader.bytes()
        : type === WireType.Bit64
          ? BigInt(reader.fixed64())
          : type === WireType.Bit32
            ? BigInt(reader.fixed32())
            : BigInt(reader.uint64())
    fields.set(number, [...(fields.get(number) ?? []), value])
  }
  return fields
}

/** @see https://github.com/open-telemetry/opentelemetry-proto: ExportTraceServiceRequest */
function decodeSpans(bytes: Uint8Array): CollectedSpan[] {
  return messages(fieldsOf(bytes), 1).flatMap((resourceSpans) => {
    const resource = messages(resourceSpans, 1).flatMap((found) => [attributesOf(found, 1)])
    return messages(resourceSpans, 2)
      .flatMap((scopeSpans) => messages(scopeSpans, 2))
      .map((span) => ({
        traceId: hex(span, 1),
        spanId: hex(span, 2),
        parentSpanId: hex(span, 4),
        name: text(span, 5),
        kind: Number(integer(span, 6)),
        startNs: integer(span, 7),
        endNs: integer(span, 8),
        attributes: attributesOf(span, 9),
        status: messages(span, 15).reduce((_, found) => Number(integer(found, 3)), 0),
        resource: resource[0] ?? {},
      }))
  })
}

function attributesOf(fields: Fields, number: number): CollectedSpan['attributes'] {
  return Object.fromEntries(
    messages(fields, number).map((pair) => {
      const [value = new Map()] = messages(pair, 2)
      if (value.has(1)) return [text(pair, 1), text(value, 1)]
      if (value.has(2)) return [text(pair, 1), integer(value, 2) === 1n]
      return [text(pair, 1), Number(integer(value, 3))]
    }),
  )
}

function messages(fields: Fields, number: number): Fields[] {
  const values = fields.get(number) ?? []
  return values.flatMap((value) => (typeof value === 'bigint' ? [] : [fieldsOf(value)]))
}

function bytesOf(fields: Fields, number: number): Buffer {
  const [value] = fields.get(number) ?? []
  return Buffer.from(typeof value === 'bigint' || value === undefined ? [] : value)
}

function text(fields: Fields, number: number): string {
  return bytesOf(fields, number).toString('utf8')
}

function hex(fields: Fields, number: number): string {
  return bytesOf(fields, number).toString('hex')
}

function integer(fields: Fields, number: number): bigint {
  const [value = 0n] = fields.get(number) ?? []
  return typeof value === 'bigint' ? value : 0n
}
