import assert from 'node:assert/strict'
import { test } from 'node:test'
import { page } from './page.js'
import type { GpuResult, PartialResult } from './result.js'

const time = { ms: 2, p10: 1, p90: 3 }
const point = {
  score: time,
  scoreSame: time,
  rank: { ...time, ms: 4 },
  scorePerSecond: 9000,
  rankPerSecond: 8000,
  batchedRankPerSecond: 7000,
}
const latencies = { p50: 1, p95: 2, p99: 3, count: 50 }
const load = {
  ...latencies,
  share: 0.5,
  offeredPerSecond: 100,
  failed: 0,
  eventLoopP99Ms: 11,
  eventLoopBusy: 0.25,
}
const whole: GpuResult = {
  machine: {
    cpu: 'cpu',
    cores: 16,
    memoryGiB: 126,
    platform: 'linux x64',
    node: 'v20',
    onnxruntime: '1.30.0',
    commit: 'abc',
    date: '2026-01-01',
    loadBefore: 0,
    gpu: 'GPU',
    driver: '1',
  },
  commits: { latency: 'abc', http: 'def' },
  latency: [
    {
      shape: 'paper',
      model: 'random-l3-d512-h8-n2048-stu',
      engines: ['capi, graphs', 'node'].map((engine) => ({
        engine,
        prefill: time,
        points: [
          { ...point, m: 1024 },
          { ...point, m: 16_384 },
        ],
        batches: [{ users: 1, msPerUser: 4 }],
      })),
    },
  ],
  equality: { fp16: [{ what: 'way', absolute: 1e-3, relative: 1e-4 }], fp32: [] },
  growth: { requests: 10, usedMiB: [6000, 6100, 6100], spills: 3, restores: 2 },
  growthWithKernels: { requests: 10, usedMiB: [6000], spills: 3, restores: 2 },
  http: {
    flags: [],
    kinds: [{ kv: 'hit', single: latencies, capacityPerSecond: 1, loads: [load] }],
  },
  httpWithKernels: {
    flags: [],
    kinds: [{ kv: 'hit', single: latencies, capacityPerSecond: 1, loads: [load] }],
  },
  profiles: [
    {
      model: 'random-l3-d512-h8-n2048-stu',
      graph: 'rank',
      m: 1024,
      us: 10,
      launches: 3,
      kernels: [{ name: 'nvjet', launches: 3, us: 10, bytes: 20_000 }],
    },
  ],
  peer: {
    machine: { torch: '2', triton: '3' },
    ceilings: { fp16Tflops: 700 },
    results: [
      { shape: 'paper', what: 'score', m: 1024, batch: 1, mode: 'graph', route: 'plain', ioMs: 1 },
      { shape: 'paper', what: 'score', m: 1024, batch: 1, mode: 'eager', route: 'plain', ms: 9 },
      // The budget was spent.
      { shape: 'paper', what: 'score', m: 16_384, batch: 1, route: 'plain' },
    ],
  },
}

const HEADINGS: Readonly<Record<string, readonly string[]>> = {
  latency: [
    '## Score on cached K/V',
    '## One pass',
    '## Requests per second',
    "## MLPerf's shape, and arithmetic per second",
    '## When kept K/V pays',
  ],
  http: ['## HTTP, end to end'],
  httpWithKernels: ['## HTTP, end to end, with kernels'],
  equality: ['## The same scores by every way'],
  growth: ["## Growth of the GPU's memory"],
  growthWithKernels: ["## Growth of the GPU's memory, with kernels"],
  profiles: ['## Where the time goes'],
  peer: [],
}

function partial(names: readonly string[]): PartialResult {
  const kept = Object.entries(whole).filter(([name]) => names.includes(name))
  return { machine: whole.machine, ...Object.fromEntries(kept) }
}

test('the page has the parts of the sections that were measured and no others', () => {
  const names = Object.keys(HEADINGS)
  for (let subset = 0; subset < 2 ** names.length; subset++) {
    const measured = names.filter((_, i) => (subset >> i) & 1)
    const text = page(partial(measured))
    const found = text.split('\n').filter((line) => line.startsWith('## '))
    const expected = Object.entries(HEADINGS).flatMap(([name, headings]) =>
      measured.includes(name) ? headings : [],
    )
    assert.deepEqual(found, expected, measured.join())
    assert.doesNotMatch(text, /undefined|NaN|Infinity/, measured.join())
    const compares = measured.includes('latency') && measured.includes('peer')
    assert.equal(text.includes("### Beside Meta's"), compares, measured.join())
  }
})

test('a section of another commit than the page says so', () => {
  const [, http = ''] = page(whole).split('## HTTP, end to end\n')
  assert.match(http, /^\nOf another run, commit def\.\n/)
  assert.equal(page(whole).match(/another run/g)?.length, 2)
})

test('every row of a table has as many cells as its head', () => {
  const cells = (line: string) => line.split(' | ').length
  const tables = page(whole).match(/(^\|.*\n)+/gm) ?? []
  assert.ok(tables.length > 8, `${tables.length} tables`)
  for (const table of tables) {
    const [head = '', ...rows] = table.trimEnd().split('\n')
    for (const row of rows) assert.equal(cells(row), cells(head), row)
  }
})

test("the peer's figure is its graph's with copies, and a point it skipped has no row", () => {
  const [, beside = ''] = page(whole).split("### Beside Meta's Triton kernels")
  const [compared = ''] = beside.split('## One pass')
  const rows = compared.match(/^\| paper .*$/gm)
  assert.deepEqual(rows, ['| paper | 1,024 | 2.00 | 1.00 | – | – | – | 2.00 | – | 2.00 |'])
  assert.match(compared, /\*\*slower\*\* at paper m = 1,024 \(2\.00\)\./)
})
