import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { tempFolder } from '../../../test/fixtures.js'
import { openCudaLane } from './cuda-lane.js'
import type { CopyIn } from './kernels.js'
import type { Traffic } from './lane-device.js'
import { loadLibrary } from './native.js'
import type { RunArguments } from './ort.js'

const hasCompiler = spawnSync('cc', ['--version']).status === 0

/**
 * The functions of CUDA's runtime that a lane calls, over the process's own memory: a captured copy is kept, a
 * launch makes the kept copies. An event is asked `polls` times before it is over; a call fails with the code
 * that `failWith` names for it.
 */
const RUNTIME = `
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef struct { void *to; const void *from; size_t bytes; } Copy;
typedef struct { Copy copies[16]; int count; } Graph;
static Graph *capturing;
static int live, polls, left, hosts, waits, uploads, forgotten;
static char failing[64];
static int code;
static int result(const char *name) { return strcmp(name, failing) ? 0 : code; }
void fake_fail(const char *name, int with) { strncpy(failing, name, 63); code = with; }
void fake_polls(int count) { polls = count; }
void fake_hosts(int count) { hosts = count; }
int fake_live(void) { return live; }
int fake_waits(void) { return waits; }
const char *cudaGetErrorString(int error) { return error == 700 ? "an illegal memory access" : "some error"; }
int fake_forgotten(void) { return forgotten; }
int cudaGetLastError(void) { forgotten++; return 0; }
static int make(void **out, size_t bytes) { live++; *out = calloc(1, bytes); return 0; }
static int drop(void *at) { if (at) live--; free(at); return 0; }
int cudaStreamCreateWithFlags(void **out, unsigned flags) { return flags == 1 ? make(out, 8) : 1; }
int cudaStreamDestroy(void *stream) { return drop(stream); }
int cudaEventCreateWithFlags(void **out, unsigned flags) { return flags == 3 ? make(out, 8) : 1; }
int cudaEventDestroy(void *event) { return drop(event); }
int cudaEventRecord(void *event, void *stream) { left = polls; return event && stream ? 0 : 1; }
int cudaEventQuery(void *event) { (void)event; return left-- > 0 ? 600 : result("cudaEventQuery"); }
int cudaEventSynchronize(void *event) { (void)event; waits++; return result("cudaEventSynchronize"); }
int cudaStreamSynchronize(void *stream) { return stream ? 0 : 1; }
int cudaStreamBeginCapture(void *stream, int mode) {
  if (!stream || mode != 2 || capturing) return 1;
  return make((void **)&capturing, sizeof(Graph));
}
int cudaStreamEndCapture(void *stream, void **out) {
  int error = stream ? result("cudaStreamEndCapture") : 1;
  if (error) drop(capturing);
  *out = error ? 0 : capturing;
  capturing = 0;
  return error;
}
int cudaGraphGetNodes(Graph *graph, void **nodes, size_t *count) {
  for (int i = 0; nodes && i < graph->count + hosts; i++) nodes[i] = (void *)(intptr_t)(i < graph->count ? 1 : 3);
  *count = graph->count + hosts;
  return 0;
}
int cudaGraphNodeGetType(void *node, int *type) { *type = (int)(intptr_t)node; return 0; }
int cudaGraphInstantiate(void **out, Graph *graph, unsigned long long flags) {
  make(out, sizeof(Graph));
  memcpy(*out, graph, sizeof(Graph));
  return flags ? 1 : 0;
}
int cudaGraphDestroy(void *graph) { return drop(graph); }
int cudaGraphExecDestroy(void *exec) { return drop(exec); }
int cudaGraphUpload(void *exec, void *stream) { uploads++; return exec && stream ? 0 : 1; }
int cudaGraphLaunch(Graph *exec, void *stream) {
  for (int i = 0; i < exec->count; i++) memcpy(exec->copies[i].to, exec->copies[i].from, exec->copies[i].bytes);
  return stream ? result("cudaGraphLaunch") : 1;
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  Copy copy = {to, from, bytes};
  if (kind != 4 || !stream) return 1;
  if (capturing) capturing->copies[capturing->count++] = copy;
  else memcpy(to, from, bytes);
  return 0;
}
int cudaMemset2DAsync(void *at, size_t pitch, int value, size_t width, size_t rows, void *stream) {
  for (size_t row = 0; row < rows; row++) memset((char *)at + row * pitch, value, width);
  return stream ? 0 : 1;
}
int cudaMalloc(void **out, size_t bytes) { return make(out, bytes); }
int cudaFree(void *at) { return drop(at); }
int cudaHostAlloc(void **out, size_t bytes, unsigned flags) {
  return flags == 1 && !result("cudaHostAlloc") ? make(out, bytes) : 2;
}
int cudaFreeHost(void *at) { return drop(at); }
`

describe('openCudaLane', { skip: !hasCompiler && 'no C compiler' }, () => {
  const folder = tempFolder({ after })
  const library = `${folder}/libfake.so`
  writeFileSync(`${folder}/fake.c`, RUNTIME)
  const made = spawnSync('cc', ['-shared', '-fPIC', '-w', '-o', library, `${folder}/fake.c`])
  assert.equal(made.status, 0, String(made.stderr))
  const fake = loadLibrary(library)
  const fail = fake.func('fake_fail', 'void', ['const char*', 'int'])
  const setPolls = fake.func('fake_polls', 'void', ['int'])
  const setHosts = fake.func('fake_hosts', 'void', ['int'])
  const live = fake.func('fake_live', 'int', [])
  const waits = fake.func('fake_waits', 'int', [])
  const forgotten = fake.func('fake_forgotten', 'int', [])
  const copy = fake.func('cudaMemcpyAsync', 'int', ['void*', 'void*', 'size_t', 'int', 'void*'])
  const anyArgs = {} as RunArguments

  /** A lane whose run copies `bytes` of its inputs to its results. */
  const open = (bytes = 8, copyIn?: CopyIn) => {
    let runs = 0
    let clockMs = 0
    // However busy the machine is, so many polls are a long run.
    const now = () => {
      clockMs += 0.01
      return clockMs
    }
    const lane = openCudaLane(
      library,
      () => {
        runs++
        copy(traffic.results.at, traffic.inputs.at, bytes, 4, lane.stream)
      },
      { now, copyIn },
    )
    const traffic = {
      inputs: lane.mirror(16),
      inputBytes: bytes,
      results: lane.mirror(16),
      resultBytes: bytes,
    } satisfies Traffic
    const close = () => {
      lane.release(traffic.inputs)
      lane.release(traffic.results)
      lane.close()
    }
    return { lane, traffic, close, runs: () => runs }
  }

  test('replays a run on the inputs of the moment, without the session, and leaves nothing', async () => {
    const { lane, traffic, close, runs } = open()
    const replay = await lane.prepare(anyArgs, traffic)
    const prepared = runs()
    for (const value of [1, 2, 250]) {
      traffic.inputs.bytes.fill(value)
      await replay.run()
      const expected = Array.from({ length: 16 }, (_, i) => (i < 8 ? value : 0))
      assert.deepEqual([...traffic.results.bytes], expected)
    }
    assert.equal(runs(), prepared)
    replay.release()
    close()
    assert.equal(live(), 0)
  })

  test('captures the copy of a kernel library, where there is one', async () => {
    let copies = 0
    const { lane, traffic, close } = open(8, (to, from, bytes, stream) => {
      copies++
      copy(to, from, bytes, 4, stream)
      return null
    })
    const replay = await lane.prepare(anyArgs, traffic)
    traffic.inputs.bytes.fill(7)
    await replay.run()
    assert.equal(copies, 1)
    assert.equal(traffic.results.bytes[7], 7)
    replay.release()
    close()
    const failing = open(8, () => 'no such kernel')
    const what = { code: 'ENGINE_UNAVAILABLE', message: 'CUDA: no such kernel' }
    await assert.rejects(failing.lane.prepare(anyArgs, failing.traffic), what)
    failing.close()
    assert.equal(live(), 0)
  })

  test('copies no results that the run writes where the process has them', async () => {
    const { lane, traffic, close } = open()
    const replay = await lane.prepare(anyArgs, { ...traffic, results: undefined })
    traffic.inputs.bytes.fill(7)
    traffic.results.bytes.fill(1)
    await replay.run()
    assert.deepEqual([...traffic.results.bytes], new Array(16).fill(1))
    replay.release()
    close()
    assert.equal(live(), 0)
  })

  test('leaves the event loop to others while a run lasts, and long ones to a thread', async (t) => {
    const { lane, traffic, close } = open()
    t.after(() => setPolls(0))
    const replay = await lane.prepare(anyArgs, traffic)
    setPolls(20)
    let turns = 0
    const count = () => {
      turns++
      timer = setImmediate(count)
    }
    let timer = setImmediate(count)
    t.after(() => clearImmediate(timer))
    await replay.run()
    assert.ok(turns >= 2, `${turns} turns of the event loop`)
    const before = waits()
    setPolls(2 ** 30)
    await replay.run()
    assert.equal(waits(), before + 1)
    replay.release()
    close()
    assert.equal(live(), 0)
  })

  test('says what CUDA says of a launch, of a run and of a long run, and goes on', async (t) => {
    const { lane, traffic, close } = open()
    t.after(() => fail('', 0))
    t.after(() => setPolls(0))
    const replay = await lane.prepare(anyArgs, traffic)
    const expected = { code: 'ENGINE_UNAVAILABLE', message: 'CUDA: an illegal memory access' }
    for (const [name, polls] of [
      ['cudaGraphLaunch', 0],
      ['cudaEventQuery', 3],
      ['cudaEventSynchronize', 2 ** 30],
    ] as const) {
      const before = forgotten()
      fail(name, 700)
      setPolls(polls)
      await assert.rejects(async () => replay.run(), expected, name)
      // Or ONNX Runtime would find it behind its next launch.
      assert.equal(forgotten(), before + 1)
      fail('', 0)
      setPolls(0)
      await replay.run()
    }
    replay.release()
    close()
    assert.equal(live(), 0)
  })

  test('refuses a graph that calls the host, and one that the session or CUDA breaks off', async (t) => {
    const { lane, traffic, close } = open()
    t.after(() => fail('', 0))
    setHosts(1)
    await assert.rejects(lane.prepare(anyArgs, traffic), {
      code: 'ENGINE_UNAVAILABLE',
      message: /calls the host/,
    })
    setHosts(0)
    fail('cudaStreamEndCapture', 901)
    await assert.rejects(lane.prepare(anyArgs, traffic), { code: 'ENGINE_UNAVAILABLE' })
    fail('', 0)
    const replay = await lane.prepare(anyArgs, traffic)
    replay.release()
    close()
    let calls = 0
    const broken = openCudaLane(library, () => {
      calls++
      if (calls === 3) throw new Error('broken off')
    })
    const mirror = broken.mirror(16)
    const its: Traffic = { inputs: mirror, inputBytes: 8, results: mirror, resultBytes: 8 }
    await assert.rejects(broken.prepare(anyArgs, its), /broken off/)
    const again = await broken.prepare(anyArgs, its)
    await again.run()
    again.release()
    broken.release(mirror)
    broken.close()
    assert.equal(live(), 0)
  })

  test('gives back what it has where there is no pinned memory', () => {
    const { lane, close } = open()
    fail('cudaHostAlloc', 2)
    assert.throws(() => lane.mirror(16), { code: 'ENGINE_UNAVAILABLE' })
    fail('', 0)
    close()
    assert.equal(live(), 0)
  })

  test('copies and clears rows of every pitch', () => {
    const { lane, close } = open()
    const [from, to] = [lane.mirror(64), lane.mirror(64)]
    from.bytes.forEach((_, i) => {
      from.bytes[i] = i
    })
    to.bytes.fill(255)
    lane.zeroRows(to.host, 16, 2, 3)
    lane.copyRows(to.host + 2n, 16, from.host, 10, 5, 3)
    const expected = Array.from({ length: 64 }, (_, i) => {
      const [row, column] = [i >> 4, i & 15]
      if (row > 2 || column > 6) return 255
      return column < 2 ? 0 : 10 * row + column - 2
    })
    assert.deepEqual([...to.bytes], expected)
    lane.release(from)
    lane.release(to)
    close()
    assert.equal(live(), 0)
  })
})
