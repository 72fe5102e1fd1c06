"""Peer on CUDA: Meta's own Triton HSTU kernels (meta-recsys/generative-recommenders), fp16, random weights.

    python3 meta_triton.py DIR_WITH_generative_recommenders OUT.json [--quick] [--budget-s 280]

DIR holds Meta's public package, which is never committed here. Needs PyTorch, Triton and a Hopper GPU.

A figure includes: embedding lookup (one table of 20,000 rows), L layers of Meta's STU (layer norm, uvqk
projection, SiLU attention under the targets' mask, output norm, concat of u and x, projection 3d -> d), 4
task heads with sigmoid. It is the host's wall clock around one call and torch.cuda.synchronize: median, p10
and p90 of at least 50 calls. Ids are on the GPU already and scores stay there; the fields `io...` add the
pinned copies of all ids to the GPU and of the scores back, as an engine that answers requests needs them.

rank    history and candidates in one pass; a batch's users in one launch, by jagged offsets
score   candidates against K/V resident on the GPU. Meta's cached kernel wants history and candidates in one
        K and one V tensor, so Meta's STULayer.cached_forward concatenates on every call, and so does `ms`.
        `scoreInPlaceMs`: the buffers have room and only the candidates' rows are written.
        `scoreNoCatMs`: nothing is written (the candidates' own K/V is stale, the scores wrong): a lower
        bound for any way to get rid of the concatenation.
encode  history only; the last layer stops at its K and V

Route 'plain' calls the kernels with their default arguments. 'tma' passes enable_tma=True: its descriptors
assume contiguous q, k and v, so the copies that make them so are included (Meta's fused entry,
hstu_preprocess_and_attention, leaves them strided on Hopper and then reads wrong rows: not used here).
`maxDiff`: largest difference of a score from the same layers with the attention written out in PyTorch.

Every configuration is autotuned at its own sizes, from Meta's full list of configs: Meta's keys alone would
reuse the choice made for another size. Only the compilation is done before, by one process per core.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.testing
from torch import Tensor
from triton.runtime.autotuner import Autotuner

ITEMS, TASKS, EPS = 20_000, 4, 1e-6
DTYPE = torch.float16
WARMUPS, MIN_RUNS, MAX_RUNS, TARGET_MS = 5, 50, 300, 300.0
COMPILE_LIMIT_S = 150.0


@dataclass(frozen=True)
class Shape:
    d: int
    layers: int
    heads: int
    n: int


@dataclass(frozen=True)
class Job:
    shape: str
    what: str
    m: int
    batch: int = 1
    route: str = "plain"


SHAPES = {
    "nvidia": Shape(d=1024, layers=8, heads=4, n=4096),
    "paper": Shape(d=512, layers=3, heads=8, n=2048),
    "mlperf": Shape(d=512, layers=5, heads=4, n=7000),
}
# What matters most comes first: the budget cuts from the end.
HEAD = [
    Job("nvidia", "score", 256),
    Job("nvidia", "score", 1024),
    Job("paper", "rank", 1024),
    Job("mlperf", "rank", 2048),
]
REST = [
    Job("nvidia", "rank", 256, batch=8),
    Job("nvidia", "rank", 1024),
    Job("nvidia", "rank", 256),
    Job("paper", "score", 1024),
    Job("paper", "score", 256),
    Job("paper", "score", 16_384),
    Job("paper", "rank", 256),
    Job("paper", "rank", 16_384),
    Job("mlperf", "score", 2048),
]
ENCODES = [Job("nvidia", "encode", 0), Job("paper", "encode", 0), Job("mlperf", "encode", 0)]
TMA = [Job(j.shape, j.what, j.m, j.batch, "tma") for j in [*HEAD, *REST] if j.m in (256, 1024, 2048)]


def load_meta(folder: str) -> SimpleNamespace:
    """Meta's functions that are called here."""
    sys.path.insert(0, folder)
    from generative_recommenders import common
    from generative_recommenders.ops import hstu_compute
    from generative_recommenders.ops.triton import triton_hstu_attention

    # Meta's switch: the attention is tuned by sequence length and not once for all.
    common.set_use_runtime_max_seq_len(True)
    return SimpleNamespace(
        uvqk=hstu_compute.hstu_compute_uqvk,
        output=hstu_compute.hstu_compute_output,
        mha=triton_hstu_attention.triton_hstu_mha,
        cached_mha=triton_hstu_attention.triton_cached_hstu_mha,
        TRITON=common.HammerKernel.TRITON,
        PYTORCH=common.HammerKernel.PYTORCH,
    )


def autotuners() -> list[Autotuner]:
    modules = [m for name, m in sys.modules.items() if name.startswith("generative_recommenders")]
    return list({id(v): v for m in modules for v in vars(m).values() if isinstance(v, Autotuner)}.values())


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Model:
    def __init__(self, meta: SimpleNamespace, shape: Shape, layers: int | None = None) -> None:
        def normal(*size: int, scale: float) -> Tensor:
            return torch.randn(*size, device="cuda", dtype=DTYPE) * scale

        d = shape.d
        self.meta, self.shape, self.layers = meta, shape, layers or shape.layers
        self.d_head = d // shape.heads
        self.alpha = self.d_head**-0.5
        self.table = normal(ITEMS, d, scale=0.5)
        self.w_uvqk = [normal(d, 4 * d, scale=d**-0.5) for _ in range(self.layers)]
        self.b_uvqk = torch.zeros(4 * d, device="cuda", dtype=DTYPE)
        self.w_out = [normal(3 * d, d, scale=0.3 * (3 * d) ** -0.5) for _ in range(self.layers)]
        self.gamma = torch.ones(d, device="cuda", dtype=DTYPE)
        self.beta = torch.zeros(d, device="cuda", dtype=DTYPE)
        self.w_head = normal(d, TASKS, scale=d**-0.5)

    def embed(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids, self.table)

    def heads(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x @ self.w_head)

    def uvqk(self, x: Tensor, i: int, kernel: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, q, k, v; the last three (rows, heads, d_head)."""
        h, dh = self.shape.heads, self.d_head
        return self.meta.uvqk(x, self.gamma, self.beta, EPS, h, dh, dh, self.w_uvqk[i], self.b_uvqk, kernel)

    def layer(self, x: Tensor, i: int, attend: Attend, kernel: Any = None) -> Tensor:
        kernel = kernel or self.meta.TRITON
        u, q, k, v = self.uvqk(x, i, kernel)
        return self.meta.output(
            attn=attend(q, k, v).reshape(-1, self.shape.d),
            u=u,
            x=x,
            norm_weight=self.gamma,
            norm_bias=self.beta,
            norm_eps=EPS,
            output_weight=self.w_out[i],
            num_heads=self.shape.heads,
            linear_dim=self.d_head,
            dropout_ratio=0.0,
            training=False,
            concat_u=True,
            concat_x=True,
            mul_u_activation_type="none",
            group_norm=False,
            recompute_y_in_backward=False,
            kernel=kernel,
        )


@dataclass
class Work:
    """`run` reads `ids`; `variants` are other ways to do the same, named as in the result."""

    ids: Tensor
    run: Callable[[], Any]
    variants: dict[str, Callable[[], Any]]
    expected: Tensor | None


def jagged(batch: int, length: int, m: int) -> tuple[Tensor, Tensor]:
    offsets = torch.arange(batch + 1, device="cuda", dtype=torch.int64) * length
    return offsets, torch.full((batch,), m, device="cuda", dtype=torch.int64)


def rank(model: Model, job: Job, check: bool) -> Work:
    n, m = model.shape.n, job.m
    total = n + m
    ids = random_ids(job.batch * total)
    offsets, targets = jagged(job.batch, total, m)
    tma = job.route == "tma"

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if tma:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return model.meta.mha(total, model.alpha, q, k, v, offsets, targets, enable_tma=tma)

    def run() -> Tensor:
        x = model.embed(ids)
        for i in range(model.layers):
            x = model.layer(x, i, attend)
        return model.heads(x.view(job.batch, total, -1)[:, n:].reshape(job.batch * m, -1))

    users = ids.view(job.batch, total)
    expected = torch.cat([dense(model, user, m)[0] for user in users]) if check else None
    return Work(ids, run, {}, expected)


def score(model: Model, job: Job, check: bool) -> Work:
    n, m = model.shape.n, job.m
    ids = random_ids(m)
    offsets, targets = jagged(1, n + m, m)
    tma = job.route == "tma"
    h, dh = model.shape.heads, model.d_head
    expected = None
    if check:
        expected, kv = dense(model, torch.cat([random_ids(n), ids]), m)
    else:
        kv = [tuple(torch.randn(2, n, h, dh, device="cuda", dtype=DTYPE)) for _ in range(model.layers)]
    history = [(k[:n].contiguous(), v[:n].contiguous()) for k, v in kv]
    room = [tuple(torch.cat([t, t.new_zeros(m, h, dh)]) for t in pair) for pair in history]

    def concatenated(i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([history[i][0], k]), torch.cat([history[i][1], v])

    def in_place(i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        room[i][0][n:].copy_(k)
        room[i][1][n:].copy_(v)
        return room[i]

    def stale(i: int, _k: Tensor, _v: Tensor) -> tuple[Tensor, Tensor]:
        return room[i]

    def with_kv(full: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            x = model.embed(ids)
            for i in range(model.layers):

                def attend(q: Tensor, k: Tensor, v: Tensor, i: int = i) -> Tensor:
                    all_k, all_v = full(i, k, v)
                    q = q.contiguous() if tma else q
                    return model.meta.cached_mha(
                        n + m, model.alpha, q, all_k, all_v, offsets, targets, enable_tma=tma
                    )

                x = model.layer(x, i, attend)
            return model.heads(x)

        return run

    variants = {"scoreInPlace": with_kv(in_place), "scoreNoCat": with_kv(stale)}
    return Work(ids, with_kv(concatenated), variants, expected)


def encode(model: Model, _job: Job, _check: bool) -> Work:
    n = model.shape.n
    ids = random_ids(n)
    offsets, targets = jagged(1, n, 0)

    def run() -> list[tuple[Tensor, Tensor]]:
        x = model.embed(ids)
        kv: list[tuple[Tensor, Tensor]] = []

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kv.append((k, v))
            return model.meta.mha(n, model.alpha, q, k, v, offsets, targets)

        for i in range(model.layers - 1):
            x = model.layer(x, i, attend)
        kv.append(model.uvqk(x, model.layers - 1, model.meta.TRITON)[2:])
        return kv

    return Work(ids, run, {}, None)


BUILDERS = {"rank": rank, "score": score, "encode": encode}


def random_ids(count: int) -> Tensor:
    return torch.randint(0, ITEMS, (count,), device="cuda", dtype=torch.int32)


def dense(model: Model, ids: Tensor, m: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The last m ids' scores and every layer's K and V, with the attention written out."""
    total = ids.numel()
    n, rows = total - m, torch.arange(total, device=ids.device)
    kv: list[tuple[Tensor, Tensor]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv.append((k, v))
        q, k, v = (t.transpose(0, 1).float() for t in (q, k, v))
        out = []
        for own in rows.split(1024):
            # A row sees the history up to itself, and itself; a candidate sees no other candidate.
            seen = ((rows[None] < own[:, None]) & (rows[None] < n)) | (rows[None] == own[:, None])
            weights = torch.nn.functional.silu(q[:, own] @ k.transpose(1, 2) * model.alpha) * seen
            out.append((weights @ v / total).to(DTYPE))
        return torch.cat(out, 1).transpose(0, 1)

    x = model.embed(ids)
    for i in range(model.layers):
        x = model.layer(x, i, attend, model.meta.PYTORCH)
    return model.heads(x[n:]), kv


def timed(run: Callable[[], Any], prefix: str = "") -> dict[str, float]:
    """Median, p10 and p90 of one synchronized call in ms; the keys carry `prefix`."""
    for _ in range(WARMUPS):
        run()
    torch.cuda.synchronize()
    times: list[float] = []
    runs = MIN_RUNS
    while len(times) < runs:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
        if len(times) == 10:
            runs = max(MIN_RUNS, min(MAX_RUNS, int(TARGET_MS / statistics.median(times))))
    deciles = statistics.quantiles(times, n=10)
    keys = ("ms", "p10", "p90", "runs")
    values = (statistics.median(times), deciles[0], deciles[8], len(times))
    return {named(prefix, k): round(v, 5) for k, v in zip(keys, values, strict=True)}


def named(prefix: str, key: str) -> str:
    return prefix + key[0].upper() + key[1:] if prefix else key


def capture(run: Callable[[], Any]) -> tuple[Any, Any]:
    """A CUDA graph of `run` and what it leaves its result in."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph, out


def max_diff(out: Any, expected: Tensor | None) -> dict[str, float | None]:
    if expected is None:
        return {}
    diff = (out.float() - expected.float()).abs().max().item()
    return {"maxDiff": round(diff, 6) if math.isfinite(diff) else None}  # JSON has no NaN


def forget_tuning() -> None:
    for tuner in autotuners():
        tuner.cache.clear()


def shorten_tuning(warmup_ms: float, rep_ms: float) -> None:
    """Meta's autotuner calls do_bench with 25 and 100 ms per config, hundreds of launches at these sizes."""
    full = triton.testing.do_bench

    def shorter(fn: Callable[[], Any], warmup: float = 0, rep: float = 0, **rest: Any) -> Any:
        return full(fn, warmup=warmup_ms, rep=rep_ms, **rest)

    triton.testing.do_bench = shorter


Emit = Callable[[dict[str, Any]], None]


def measure(model: Model, job: Job, emit: Emit) -> None:
    """Tunes `job`, then emits its results: eager, and under a CUDA graph."""
    forget_tuning()
    base = {"shape": job.shape, "what": job.what, "m": job.m, "batch": job.batch, "route": job.route}
    work = BUILDERS[job.what](model, job, True)
    start = time.perf_counter()
    work.run()
    torch.cuda.synchronize()
    eager: dict[str, Any] = {"tuneS": round(time.perf_counter() - start, 2), **max_diff(work.run(), work.expected)}
    eager |= timed(work.run)
    for name, variant in work.variants.items():
        eager |= timed(variant, name)
    emit({**base, "mode": "eager", **eager})

    try:
        emit({**base, "mode": "graph", **measure_graphs(work)})
    except Exception as error:
        emit({**base, "mode": "graph", "error": describe(error)})


def measure_graphs(work: Work) -> dict[str, Any]:
    graph, out = capture(work.run)
    graph.replay()
    result: dict[str, Any] = max_diff(out, work.expected)
    result |= timed(graph.replay)
    scores = isinstance(out, Tensor)
    host_ids = work.ids.cpu().pin_memory()
    host_out = torch.empty(out.shape, dtype=out.dtype, pin_memory=True) if scores else None

    def with_copies(replay: Callable[[], None], scores_on_gpu: Tensor | None) -> Callable[[], None]:
        def run() -> None:
            work.ids.copy_(host_ids, non_blocking=True)
            replay()
            if host_out is not None and scores_on_gpu is not None:
                host_out.copy_(scores_on_gpu, non_blocking=True)

        return run

    result |= timed(with_copies(graph.replay, out if scores else None), "io")
    for name, variant in work.variants.items():
        other, other_out = capture(variant)
        if name == "scoreInPlace":
            other.replay()
            result |= {named(name, k): v for k, v in max_diff(other_out, work.expected).items()}
        result |= timed(other.replay, name)
        result |= timed(with_copies(other.replay, other_out), named(name, "io"))
    return result


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:400]


def compile_worker(folder: str, jobs: list[Job], seed: int) -> None:
    """Launches every autotuner config of `jobs` once, so that Triton's disk cache holds the compiled kernels.

    Each worker goes through the jobs and configs in an order of its own: what another has compiled is a hit.
    """
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)

    def once(fn: Callable[[], Any], **_: Any) -> list[float]:
        fn()
        return [0.0, 0.0, 0.0]

    triton.testing.do_bench = once
    meta = load_meta(folder)
    order = random.Random(seed)
    for tuner in autotuners():
        order.shuffle(tuner.configs)
    failed = 0
    with torch.inference_mode():
        for job in jobs[seed % len(jobs) :] + jobs[: seed % len(jobs)]:
            try:
                forget_tuning()
                BUILDERS[job.what](Model(meta, SHAPES[job.shape], layers=1), job, False).run()
                torch.cuda.synchronize()
            except Exception:
                failed += 1  # the measuring process will meet the same error and record it
    sys.exit(failed)


def compile_ahead(folder: str, jobs: list[Job], limit_s: float) -> list[int | None]:
    """Compiles in parallel and times nothing. Returns how many jobs failed in each process."""
    # m = 16,384 compiles what 1,024 does, and encode what rank does.
    jobs = [job for job in jobs if job.m in (256, 1024, 2048)]
    spawn = multiprocessing.get_context("spawn")
    count = min(16, os.cpu_count() or 1)
    workers = [spawn.Process(target=compile_worker, args=(folder, jobs, i), daemon=True) for i in range(count)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + limit_s
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
        if worker.is_alive():
            worker.terminate()
            worker.join()
    return [worker.exitcode for worker in workers]


def ceilings() -> dict[str, float]:
    """What the machine gives: fp16 matrix product of random data, copies on the GPU and to and from it."""

    def seconds(run: Callable[[], Any], repeats: int) -> float:
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=DTYPE) for _ in range(2))
    product = torch.empty_like(a)
    big = torch.empty(2, 2**31, device="cuda", dtype=torch.uint8)
    host, device = torch.empty(2**28, dtype=torch.uint8, pin_memory=True), big[0, : 2**28]
    result = {
        "fp16Tflops": 2 * side**3 / seconds(lambda: torch.mm(a, b, out=product), 20) / 1e12,
        "copyGBs": 2 * 2**31 / seconds(lambda: big[0].copy_(big[1]), 20) / 1e9,
        "h2dGBs": 2**28 / seconds(lambda: device.copy_(host, non_blocking=True), 10) / 1e9,
        "d2hGBs": 2**28 / seconds(lambda: host.copy_(device, non_blocking=True), 10) / 1e9,
    }
    return {k: round(v, 1) for k, v in result.items()}


def machine() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        driver = describe(error)
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--quick", action="store_true", help="the first four configurations only, no TMA")
    parser.add_argument("--budget-s", type=float, default=280.0, help="start no configuration after this long")
    args = parser.parse_args()
    started = time.monotonic()
    folder = os.path.abspath(args.folder)
    warnings.simplefilter("ignore")  # Triton warns once for each config
    groups = [HEAD] if args.quick else [[*HEAD, *REST, *ENCODES], TMA]
    report: dict[str, Any] = {"machine": machine(), "ceilings": {}, "compile": [], "results": []}

    def elapsed() -> float:
        return time.monotonic() - started

    def save() -> None:
        report["elapsedS"] = round(elapsed(), 1)
        with open(f"{args.out}.part", "w") as file:
            json.dump(report, file, indent=1)
        os.replace(f"{args.out}.part", args.out)

    def emit(result: dict[str, Any]) -> None:
        report["results"].append(result)
        hidden = ("p10", "p90", "runs")
        shown = {k: v for k, v in result.items() if not k.lower().endswith(hidden)}
        print(f"{elapsed():6.1f}s", " ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
        save()

    def compiled(jobs: list[Job]) -> None:
        start = elapsed()
        limit = min(COMPILE_LIMIT_S, (args.budget_s - start) / 2)
        exits = compile_ahead(folder, jobs, limit) if limit > 10 else []
        report["compile"].append({"s": round(elapsed() - start, 1), "exits": exits})
        print(f"{elapsed():6.1f}s compiled ahead, exit codes {exits}", flush=True)

    torch.manual_seed(7)
    with torch.inference_mode():
        try:
            report["ceilings"] = ceilings()
        except Exception as error:
            report["ceilings"] = {"error": describe(error)}
        torch.cuda.empty_cache()
        print(json.dumps({"machine": report["machine"], "ceilings": report["ceilings"]}), flush=True)
        save()

        meta = load_meta(folder)
        shorten_tuning(*((5, 15) if args.quick else (8, 30)))
        models: dict[str, Model] = {}
        for jobs in groups:
            compiled(jobs)
            for job in jobs:
                if elapsed() > args.budget_s:
                    emit({**vars(job), "skipped": "the time budget is spent"})
                    continue
                try:
                    if job.shape not in models:
                        models[job.shape] = Model(meta, SHAPES[job.shape])
                    measure(models[job.shape], job, emit)
                except Exception as error:
                    emit({**vars(job), "error": describe(error)})
                torch.cuda.empty_cache()
    print(f"{elapsed():6.1f}s done, written to {args.out}", flush=True)


if __name__ == "__main__":
    main()
