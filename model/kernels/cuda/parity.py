"""The kernels against float64, and their times: python3 parity.py LIBRARY [--quick] [--times] [--host] [--only rows,…]

Needs PyTorch and a GPU of compute capability 9.0; with --host none, for the reference on the host. Every case has fresh random inputs, a poisoned output with guards
behind it, and NaN behind its inputs; every row-block size and every split of the keys is run. Ends with 1 if one failed.
"""

import argparse
import ctypes
import itertools
import math
import random
import statistics
import sys

import torch

P, I, L, F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
BUCKETS, GUARD = 128, 4096
TOLERANCE = 2e-3


def struct(**fields):
    """A C struct with these fields; calls give an instance."""
    return type("Args", (ctypes.Structure,), {"_fields_": list(fields.items())})


View = struct(at=P, row=L, user=L, head=L)
Attention = struct(
    q=View, own_k=View, own_v=View, k=View, v=View, out=P, users=I, heads=I, dqk=I, dv=I, rows=I, keys=I, causal=I,
    positions=I, lengths=P, pos_w=P, time_w=P, times=P, query_times=P, alpha=F, scale=F, warpgroups=I, split=I, stream=P,
)
LinearPart = struct(x=P, y=P, rows=L, begin=I, end=I)
Linear = struct(w=P, bias=P, parts=LinearPart * 3, depth=I, width=I, silu=I, is_constant=I, tile=I, split=I, stream=P)
Gate = struct(uvqk=P, a=P, gamma=P, beta=P, out=P, rows=L, uvqk2=P, a2=P, out2=P, rows2=L, uvqk_row=L, width=I, act=I, concat=I, epsilon=F, stream=P)
Norm = struct(x=P, gamma=P, beta=P, update=P, bias=P, out=P, sum=P, rows=L, x2=P, update2=P, out2=P, sum2=P, rows2=L, width=I, epsilon=F, stream=P)
Embed = struct(table=P, ids=P, masks=P, action=P, out=P, rows=L, ids2=P, out2=P, rows2=L, gamma=P, beta=P, norm=P, norm2=P, users=I, slots=I, width=I, actions=I, epsilon=F, stream=P)
Logits = struct(x=P, w=P, bias=P, out=P, rows=L, users=I, depth=I, tasks=I, stream=P)

parser = argparse.ArgumentParser()
parser.add_argument("library")
parser.add_argument("--quick", action="store_true")
parser.add_argument("--times", action="store_true")
parser.add_argument("--host", action="store_true")
parser.add_argument("--only", default="copy,rows,linear,attention,times", help="parts of the parity check")
parser.add_argument("--most", type=int, default=10**9, help="cases of attention and of linear layers, drawn at random")
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()
DEVICE = "cpu" if options.host else "cuda"
library = ctypes.CDLL(options.library)
for function in ("Attention", "Linear", "Gate", "Norm", "Embed", "Logits", "Copy"):
    getattr(library, f"hstu{function}").restype = ctypes.c_char_p
torch.manual_seed(options.seed)
rng = random.Random(options.seed)
failures, count, worst = [], 0, {}


def half(*shape, scale=1.0):
    """Random float16 with NaN behind it: what reads past the end shows."""
    size = math.prod(shape)
    whole = torch.full((size + GUARD,), float("nan"), device=DEVICE, dtype=torch.float16)
    whole[:size] = torch.randn(size, device=DEVICE) * scale
    return whole[:size].view(*shape)


def poisoned(*shape, dtype=torch.float16):
    """An output full of NaN, and the whole buffer, whose end must keep its pattern."""
    size = math.prod(shape)
    whole = torch.full((size + GUARD,), float("nan") if dtype.is_floating_point else 99, device=DEVICE, dtype=dtype)
    whole[size:] = 7.0
    return whole[:size].view(*shape), whole


def at(x, offset=0):
    return None if x is None else x.data_ptr() + 2 * offset


NO_PART = (None, None, 0)
LINEAR_TILES = 6


def linear(w, bias, parts, silu, tile, split):
    """Arguments of a linear layer; a part is x, y, and the columns of w that y has."""
    parts = [LinearPart(at(x), at(y), x.shape[0], begin, end) for x, y, begin, end in parts]
    return Linear(at(w), at(bias), (LinearPart * 3)(*parts), w.shape[0], w.shape[1], silu, 1, tile, split, stream())


def split_rows(rows):
    """How many of the rows are the second part's: mostly none, some, or all."""
    return rng.choice([0, 0, rng.randint(0, rows), rows])


def stream():
    return None if options.host else torch.cuda.current_stream().cuda_stream


def call(name, args):
    failure = getattr(library, f"hstu{name}")(ctypes.byref(args))
    return failure.decode() if failure else None


def check(kind, case, failure, out, whole, expected):
    global count
    count += 1
    error = math.inf
    if failure is None:
        if not options.host:
            torch.cuda.synchronize()
        size = out.numel()
        if not bool((whole[size:] == 7.0).all()):
            failure = "wrote behind its output"
        elif size:
            expected = expected.reshape(out.shape)
            error = ((out.double() - expected).norm() / expected.norm().clamp_min(1e-9)).item()
        else:
            error = 0.0
    if failure is not None or not error < TOLERANCE:
        failures.append((kind, case))
        if len(failures) <= 25:
            print("FAILED", kind, case, failure or f"relative error {error:.2e}", flush=True)
    else:
        worst[kind] = max(worst.get(kind, 0.0), error)


def bucket(seconds):
    return (seconds.clamp_min(1).double().log() / 0.301).floor().clamp(0, BUCKETS - 1).long()


def silu(x):
    return x * torch.sigmoid(x)


def mixed_times(users, span):
    """Seconds to days apart, at times further than 32 bits of seconds say, and not in order everywhere."""
    steps = torch.tensor([rng.choice([0, 1, 30, 3600, 86400, 400_000]) for _ in range(users * span)], dtype=torch.int64)
    if rng.random() < 0.2:
        steps[rng.randrange(len(steps)) if len(steps) else slice(0)] = 2**33
    times = steps.view(users, span).cumsum(1)
    if span > 8:
        times[:, 3], times[:, 5] = times[:, 5].clone(), times[:, 3].clone()
    return times


def stepped(step):
    return lambda users, span: torch.tensor([[step(i) for i in range(span)] for _ in range(users)], dtype=torch.int64).view(users, span).cumsum(1)


def at_edges(users, span):
    """As far from the newest as the buckets' edges, a second more and less; many alike."""
    ago = sorted((math.ceil(math.exp(0.301 * rng.randint(1, 71))) + rng.choice([-1, 0, 1]) for _ in range(span)), reverse=True)
    return (2**31 - torch.tensor(ago, dtype=torch.int64)).expand(users, span).clone()


def shuffled(users, span):
    return torch.tensor([rng.randint(0, 10_000_000) for _ in range(users * span)], dtype=torch.int64).view(users, span)


TIMES = {
    "mixed": mixed_times,
    "equal": stepped(lambda i: 0),
    "seconds": stepped(lambda i: 1),
    "hours": stepped(lambda i: 3600),
    "pairs": stepped(lambda i: i % 2 * 5400),
    "in order": stepped(lambda i: rng.choice([0, 1, 30, 3600, 86400, 400_000])),
    "one jump": stepped(lambda i: rng.choice([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 50_000_000]) if i % 8 == 0 else 0),
    "days, then seconds": stepped(lambda i: 86400 if i % 200 < 150 else 1),
    "at edges": at_edges,
    "months": stepped(lambda i: 2_600_000),
    "centuries": stepped(lambda i: 2**33 if i % 50 == 49 else 60),
    "backwards": stepped(lambda i: -7200),
    "shuffled": shuffled,
}


class Case:
    """One attention: uvqk rows of `users`, a history with its own uvqk, tables, times by a name of TIMES."""

    def __init__(self, heads, dqk, dv, users, rows, keys, causal, bias, packed, lengths, positions=64, times="mixed"):
        self.__dict__.update(locals())
        del self.__dict__["self"]
        self.width = 2 * heads * (dqk + dv)
        self.uvqk = half(rows, users, self.width)
        self.past_k = half(keys, users, heads * dqk)
        self.past_v = half(keys, users, heads * dv)
        self.history = half(keys, users, self.width)
        self.alpha, self.scale = dqk**-0.5, 1 / max(16, keys + rows)
        self.real = [rng.choice([0, 1, keys, rng.randint(0, keys)]) for _ in range(users)] if lengths else [keys] * users
        self.lengths_at = torch.tensor(self.real, device=DEVICE, dtype=torch.int64) if lengths else None
        span = keys + rows if causal else keys
        self.pattern = times
        self.times = (TIMES[times](users, span) + 1_600_000_000).to(DEVICE)
        newest = self.times.max(1).values if span else torch.full((users,), 1_600_000_000, device=DEVICE)
        self.query_times = newest + torch.tensor([rng.choice([0, 1, 77, 1_000_000]) for _ in range(users)], device=DEVICE)
        self.pos_w, self.time_w = half(positions, scale=0.5), half(BUCKETS, scale=0.5)

    def view(self, x, offset, head):
        return View(at(x, offset), x.shape[1] * x.shape[2], x.shape[2], head)

    def args(self, out, warpgroups, split):
        h, dqk, dv = self.heads, self.dqk, self.dv
        v, q, k = h * dv, 2 * h * dv, 2 * h * dv + h * dqk
        kv = (self.history, k, self.history, v) if self.packed else (self.past_k, 0, self.past_v, 0)
        return Attention(
            self.view(self.uvqk, q, dqk), self.view(self.uvqk, k, dqk), self.view(self.uvqk, v, dv),
            self.view(kv[0], kv[1], dqk), self.view(kv[2], kv[3], dv), at(out), self.users, h, dqk, dv, self.rows,
            self.keys, int(self.causal), self.positions, at(self.lengths_at), at(self.pos_w) if self.bias else None,
            at(self.time_w) if self.bias else None, at(self.times) if self.bias else None,
            at(self.query_times) if self.bias and not self.causal else None, self.alpha, self.scale, warpgroups, split, stream(),
        )

    def expected(self):
        h, dqk, dv, n, m = self.heads, self.dqk, self.dv, self.keys, self.rows
        split = lambda x: [p.unflatten(2, (h, -1)).double() for p in x.split([h * dv, h * dv, h * dqk, h * dqk], 2)]
        _, own_v, q, own_k = split(self.uvqk)
        if self.packed:
            _, v, _, k = split(self.history)
        else:
            k, v = self.past_k.unflatten(2, (h, dqk)).double(), self.past_v.unflatten(2, (h, dv)).double()
        out = torch.zeros(m, self.users, h, dv, device=DEVICE, dtype=torch.float64)
        pos_w, time_w = self.pos_w.double(), self.time_w.double()
        clamp = lambda distance: distance.clamp(0, self.positions - 1)
        i, j = torch.arange(m, device=DEVICE)[:, None], torch.arange(n, device=DEVICE)[None]
        for u in range(self.users):
            real, times = self.real[u], self.times[u]
            scores = torch.einsum("ihc,jhc->hij", q[:, u], k[:, u]) * self.alpha
            if self.bias and n:
                if self.causal:
                    bias = pos_w[clamp(n + i - j)] + time_w[bucket(times[n:][:, None] - times[None, :n])]
                else:
                    bias = pos_w[clamp(real - j)] + time_w[bucket(self.query_times[u] - times[None])]
                scores = scores + bias[None]
            weights = silu(scores) * (j < real)[None]
            out[:, u] = torch.einsum("hij,jhc->ihc", weights, v[:, u])
            if self.causal:
                i2 = torch.arange(m, device=DEVICE)
                own = torch.einsum("ihc,jhc->hij", q[:, u], own_k[:, u]) * self.alpha
                if self.bias:
                    new = times[n:]
                    own = own + (pos_w[clamp(i2[:, None] - i2[None])] + time_w[bucket(new[:, None] - new[None])])[None]
                out[:, u] += torch.einsum("hij,jhc->ihc", silu(own) * (i2[None] <= i2[:, None])[None], own_v[:, u])
            else:
                own = (q[:, u] * own_k[:, u]).sum(-1) * self.alpha + (pos_w[0] + time_w[0] if self.bias else 0)
                out[:, u] += silu(own)[..., None] * own_v[:, u]
        return out * self.scale

    def run(self, plans):
        expected = self.expected()
        names = ("heads", "dqk", "dv", "users", "rows", "keys", "causal", "bias", "packed", "real", "pattern")
        for warpgroups, split in plans:
            out, whole = poisoned(self.rows, self.users, self.heads * self.dv)
            failure = call("Attention", self.args(out, warpgroups, split))
            case = {name: getattr(self, name) for name in names} | {"warpgroups": warpgroups, "split": split}
            check("attention", case, failure, out, whole, expected)


def attention_cases():
    widths = [(64, 64), (128, 128), (256, 256), (24, 24), (40, 16), (96, 128), (200, 64), (8, 248)]
    sizes = [(1, 1), (5, 0), (64, 128), (130, 515), (257, 1000), (200, 64), (1, 300), (100, 129)]
    kinds = itertools.product(widths, (False, True), (False, True))
    todo = [(kind, size) for kind in kinds for size in (sizes if not options.quick else rng.sample(sizes, 3))]
    for ((dqk, dv), causal, bias), (rows, keys) in rng.sample(todo, min(len(todo), options.most)):
        users = rng.choice([1, 1, 3])
        packed = not causal and rng.random() < 0.5
        lengths = not causal and rng.random() < 0.6
        most = 3 if max(dqk, dv) <= 64 and not bias else 2
        plans = [(0, 0)] + [(w, s) for w in range(1, most + 1) for s in ((1, 2, 3, 5, 8) if w < 3 else (1,))]
        if options.quick:
            plans = rng.sample(plans, 4)
        Case(rng.choice([1, 3]), dqk, dv, users, rows, keys, causal, bias, packed, lengths).run(plans)


def times_cases():
    """The relative bias over every kind of times: one, two and many buckets of a tile's keys, in order or not."""
    sizes = [(300, 260), (64, 1000), (520, 0), (1, 400)]
    todo = list(itertools.product((64, 128, 256), TIMES, (True, False), sizes))
    for width, times, causal, (rows, keys) in rng.sample(todo, min(len(todo), options.most, 60 if options.quick else len(todo))):
        plans = rng.sample([(w, s) for w in (1, 2) for s in (1, 2, 3, 8)], 2) + [(0, 0)]
        Case(1, width, width, rng.choice([1, 2]), rows, keys, causal, True, False, False, rng.choice([8, 500]), times).run(plans)


LINEAR_PLANS = [(0, 0)] + [(t, s) for t in range(1, LINEAR_TILES + 1) for s in (1, 2, 4)]


def linear_cases():
    sizes = [(1, 8, 8), (7, 64, 64), (130, 96, 200), (64, 512, 2048), (1000, 1536, 512), (257, 72, 264), (2048, 512, 2048)]
    todo = list(itertools.product(sizes, (0, 1), (0, 1)))
    for (rows, depth, width), bias, act in rng.sample(todo, min(len(todo), options.most)):
        x, w, b = half(rows, depth), half(depth, width, scale=depth**-0.5), half(width)
        y = x.double() @ w.double() + (b.double() if bias else 0)
        y = silu(y) if act else y
        for tile, split in rng.sample(LINEAR_PLANS, 6 if options.quick else 16):
            out, whole = poisoned(rows, width)
            one = rows - split_rows(rows)
            parts = [(x[:one], out[:one], 0, width), (x[one:], out[one:], 0, width)]
            case = dict(rows=rows, one=one, depth=depth, width=width, bias=bias, silu=act, tile=tile, split=split)
            check("linear", case, call("Linear", linear(w, b if bias else None, parts, act, tile, split)), out, whole, y)
        for tile, split in rng.sample(LINEAR_PLANS, 6 if options.quick else 16):
            # Some columns of the first rows, others of them too, all of the rest.
            one, edges = rng.randint(0, rows), sorted(8 * rng.randint(0, width // 8) for _ in range(4))
            columns = [(edges[0], edges[1]), (edges[2], edges[3]), (0, width)]
            columns = [(low, high) if high > low else (0, width) for low, high in columns]
            sources = [x[:one], x[:one], x[one:]]
            outs = [poisoned(part.shape[0], high - low) for part, (low, high) in zip(sources, columns)]
            parts = [(part, out[0], *of) for part, out, of in zip(sources, outs, columns)]
            failure = call("Linear", linear(w, b if bias else None, parts, act, tile, split))
            for i, (low, high) in enumerate(columns):
                case = dict(rows=rows, one=one, part=i, columns=(low, high), depth=depth, width=width, bias=bias, silu=act, tile=tile, split=split)
                check("linear of parts", case, failure, *outs[i], (y[one:] if i == 2 else y[:one])[:, low:high])


def row_cases():
    for rows, width in itertools.product((1, 5, 1000), (8, 96, 256, 512, 1000, 1024, 2048, 3072)):
        a, uvqk, gamma, beta = half(rows, width), half(rows, 4 * width), half(width), half(width)
        normed = torch.nn.functional.layer_norm(a.double(), (width,), eps=1e-6)
        affine = normed * gamma.double() + beta.double()
        out, whole = poisoned(rows, width)
        second = split_rows(rows)
        one = rows - second
        args = Norm(at(a), at(gamma), at(beta), None, None, at(out), None, one, at(a, one * width), None, at(out, one * width), None, second, width, 1e-6, stream())
        check("norm", (rows, width, second), call("Norm", args), out, whole, affine)
        for has_bias in (0, 1):
            update, bias = half(rows, width), half(width)
            expected = a.double() + update.double() + (bias.double() if has_bias else 0)
            total, whole_total = poisoned(rows, width)
            out, whole = poisoned(rows, width)
            args = Norm(at(a), at(gamma), at(beta), at(update), at(bias) if has_bias else None, at(out), at(total), one, at(a, one * width), at(update, one * width), at(out, one * width), at(total, one * width), second, width, 1e-6, stream())
            failure = call("Norm", args)
            check("sum", (rows, width, has_bias), failure, total, whole_total, expected)
            of_sum = torch.nn.functional.layer_norm(total.double(), (width,), eps=1e-6) * gamma.double() + beta.double()
            check("norm of sum", (rows, width, has_bias), failure, out, whole, of_sum)
        for act, concat, has_affine in itertools.product((0, 1), (0, 1), (0, 1)):
            u = uvqk[:, :width].double()
            u = silu(u) if act else u
            y = u * (affine if has_affine else normed)
            expected = torch.cat([u, a.double(), y], 1) if concat else y
            out, whole = poisoned(rows, width * (3 if concat else 1))
            args = Gate(at(uvqk), at(a), at(gamma) if has_affine else None, at(beta) if has_affine else None, at(out), one, at(uvqk, 4 * one * width), at(a, one * width), at(out, one * width * (3 if concat else 1)), second, 4 * width, width, act, concat, 1e-6, stream())
            check("gate", (rows, width, second, act, concat, has_affine), call("Gate", args), out, whole, expected)
        for users, slots, actions in ((1, 1, 0), (1, 3, 6), (3, 2, 4)):
            table, action = half(50, width), half(max(1, actions), width)
            ids = torch.randint(0, 50, (users, rows, slots), device=DEVICE, dtype=torch.int32)
            masks = torch.randint(0, 1 << actions, (users, rows), device=DEVICE, dtype=torch.int32) if actions else None
            expected = table.double()[ids.long()].sum(2)
            for bit in range(actions):
                expected = expected + (masks >> bit & 1)[..., None] * action.double()[bit]
            more = torch.randint(0, 50, (users, 7, slots), device=DEVICE, dtype=torch.int32)
            both = [expected.transpose(0, 1), table.double()[more.long()].sum(2).transpose(0, 1)]
            for has_norm in (0, 1):
                outs, norms = ([poisoned(tokens, users, width) for tokens in (rows, 7)] for _ in range(2))
                of_norm = (at(gamma), at(beta), at(norms[0][0]), at(norms[1][0])) if has_norm else (None,) * 4
                args = Embed(at(table), at(ids), at(masks), at(action) if actions else None, at(outs[0][0]), rows * users, at(more), at(outs[1][0]), 7 * users, *of_norm, users, slots, width, actions, 1e-6, stream())
                failure = call("Embed", args)
                for part in (0, 1):
                    case = (rows, users, width, slots, actions, f"part {part}")
                    check("embed", case, failure, *outs[part], both[part])
                    if has_norm:
                        of = torch.nn.functional.layer_norm(outs[part][0].double(), (width,), eps=1e-6) * gamma.double() + beta.double()
                        check("norm of embed", case, failure, *norms[part], of)
        for users, tasks in ((1, 1), (1, 2), (3, 5)):
            x, w, b = half(rows, users, width), half(width, tasks), half(tasks)
            out, whole = poisoned(users, rows, tasks, dtype=torch.float32)
            args = Logits(at(x), at(w), at(b), at(out), rows * users, users, width, tasks, stream())
            check("logits", (rows, users, width, tasks), call("Logits", args), out, whole, (x.double() @ w.double() + b.double()).transpose(0, 1))


def graph_us(run, repeats=10):
    """Microseconds of one call among `repeats` in a CUDA graph, median."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeats):
            run(i)
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / repeats * 1e3)
    return statistics.median(times[3:])


def times():
    shapes = [
        ("paper", 8, 64, 2048, (256, 1024, 16384)),
        ("nvidia", 4, 256, 4096, (256, 1024)),
        ("mlperf", 4, 128, 7000, (2048,)),
    ]
    for name, heads, d, n, candidates in shapes:
        todo = [(m, n, False) for m in candidates] + [(n, 0, True), (64, n, True)]
        for rows, keys, causal in todo:
            for bias in (False, True):
                cases = [Case(heads, d, d, 1, rows, keys, causal, bias, False, False, positions=n, times="hours") for _ in range(3)]
                outs = [poisoned(rows, 1, heads * d)[0] for _ in cases]
                pairs = rows * (keys + (rows + 1) / 2 if causal else keys + 1)
                found = []
                most = 3 if d == 64 and not bias else 2
                splits = (1, 2, 4, 8) if rows <= 7000 else (1,)
                plans = [(0, 0)] + [(w, s) for w in range(1, most + 1) for s in (splits if w < 3 else (1,))]
                for plan in plans:
                    us = graph_us(lambda i: call("Attention", cases[i % 3].args(outs[i % 3], *plan)), 3 if rows > 8000 else 9)
                    found.append((us, plan))
                chosen, best = found[0][0], sorted(found[1:])[:3]
                what = f"{name} {'causal' if causal else 'candidates'} rows {rows} keys {keys}{' rab' if bias else ''}"
                print(f"{what:48s} {chosen:7.1f} us {4 * heads * d * pairs / chosen / 1e6:5.0f} TFLOP/s | " + "  ".join(f"{p}: {t:.1f}" for t, p in best), flush=True)
    for rows, depth, width in [(256, 512, 2048), (1024, 512, 2048), (2048, 512, 2048), (16384, 512, 2048), (2048, 1536, 512), (1024, 1536, 512), (3072, 1536, 512), (3072, 512, 2048), (256, 512, 512), (4096, 1024, 4096), (1024, 1024, 4096), (256, 1024, 4096), (4096, 1024, 1024), (7000, 512, 2048), (2048, 512, 2048)]:
        sets = [(half(rows, depth), half(depth, width), half(width), poisoned(rows, width)[0]) for _ in range(3)]
        found = []
        for tile, split in LINEAR_PLANS:
            def run(i):
                x, w, b, y = sets[i % 3]
                failure = call("Linear", linear(w, b, [(x, y, 0, width)], 0, tile, split))
                assert failure is None, failure
            try:
                found.append((graph_us(run, 9), (tile, split)))
            except AssertionError as error:
                print((tile, split), error)
        torch_us = graph_us(lambda i: torch.addmm(sets[i % 3][2], sets[i % 3][0], sets[i % 3][1], out=sets[i % 3][3]), 9)
        best = sorted(found[1:])[:8]
        print(f"linear {rows} x {depth} x {width}: {found[0][0]:.1f} us, torch addmm {torch_us:.1f} | " + "  ".join(f"{p}: {t:.1f}" for t, p in best), flush=True)
    for rows, width in [(256, 512), (2048, 512), (4096, 1024)]:
        a, uvqk, gamma, beta, out = half(rows, width), half(rows, 4 * width), half(width), half(width), poisoned(rows, 3 * width)[0]
        gate = graph_us(lambda _: call("Gate", Gate(at(uvqk), at(a), at(gamma), at(beta), at(out), rows, None, None, None, 0, 4 * width, width, 1, 1, 1e-6, stream())))
        total = half(rows, width)
        norm = graph_us(lambda _: call("Norm", Norm(at(a), at(gamma), at(beta), at(uvqk), None, at(out), at(total), rows, None, None, None, None, 0, width, 1e-6, stream())))
        ids = torch.randint(0, 1000, (rows, 3), device=DEVICE, dtype=torch.int32)
        table = half(1000, width)
        embed, embed_norm = (
            graph_us(lambda _: call("Embed", Embed(at(table), at(ids), None, None, at(out), rows, *NO_PART, *of, None, 1, 3, width, 0, 1e-6, stream())))
            for of in ((None, None, None), (at(gamma), at(beta), at(total)))
        )
        w, scores = half(width, 2), torch.empty(rows, 2, device=DEVICE)
        logits = graph_us(lambda _: call("Logits", Logits(at(a), at(w), at(gamma), at(scores), rows, 1, width, 2, stream())))
        print(f"rows {rows} x {width}: gate {gate:.1f}, norm {norm:.1f}, embed {embed:.1f}, with norm {embed_norm:.1f}, logits {logits:.1f} us", flush=True)


print("host" if options.host else torch.cuda.get_device_name(), flush=True)
def copy_cases():
    for size in (1, 12, 16, 1000, 1024, 65_552):
        out, whole = poisoned(size, dtype=torch.int8)
        given = torch.randint(-128, 127, (size,), dtype=torch.int8)
        given = given if options.host else given.pin_memory()
        failure = library.hstuCopy(P(out.data_ptr()), P(given.data_ptr()), L(size), P(stream()))
        check("copy", size, failure and failure.decode(), out, whole, given.to(DEVICE).double())


PARTS = {"copy": copy_cases, "rows": row_cases, "linear": linear_cases, "attention": attention_cases, "times": times_cases}
for part in (PARTS[name] for name in options.only.split(",") if name):
    before = count
    try:
        part()
    except Exception as error:  # a fault in one part shows what the others do
        failures.append((part.__name__, str(error)))
        print("FAILED", part.__name__, str(error)[:300], flush=True)
    print(f"{part.__name__}: {count - before} cases, worst {({k: f'{v:.1e}' for k, v in worst.items()})}, failed so far {len(failures)}", flush=True)
if options.times:
    times()
sys.exit(1 if failures else 0)
