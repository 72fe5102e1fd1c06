"""Peer: the same HSTU layers in PyTorch on the CPU, at the paper's ranking shape.

3 layers, width 512, 8 heads, 2,048 history tokens; candidates against cached K and V (score), and the
history's causal pass in chunks of 512 (encode), and single operators of a layer. No relative bias, no embedding tables, no task head: what
is left out makes the peer faster, not slower.

    python3 torch_cpu.py THREADS      prints one JSON object, milliseconds (medians)
"""

import json
import statistics
import sys
import time

import torch

LAYERS, D, HEADS, N, M, CHUNK = 3, 512, 8, 2048, 1024, 512
D_HEAD = D // HEADS
ALPHA = D_HEAD**-0.5


def median_ms(run, repeats):
    """Median wall time of `run` in milliseconds, after three warm-up calls."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def measure(dtype):
    """With weights and K/V of `dtype`: {"encodeMs", "scoreMs": {micro-batch: ms for M candidates},
    "wholeMs": {m: ms for m candidates in one micro-batch}, "opMs": {operator: ms}, "peakTflops": of a large product}."""
    functional = torch.nn.functional
    uvqk = [(torch.randn(D, 4 * D) / D**0.5).to(dtype) for _ in range(LAYERS)]
    out = [(torch.randn(D, D) * 0.3 / D**0.5).to(dtype) for _ in range(LAYERS)]
    gamma, beta = torch.ones(D, dtype=dtype), torch.zeros(D, dtype=dtype)
    causal = torch.tril(torch.ones(CHUNK, CHUNK)).to(dtype)

    def layer(x, i, attend):
        """x (rows, D) -> y (rows, D) and this layer's K, V (HEADS, rows, D_HEAD)."""
        u, v, q, k = functional.silu(functional.layer_norm(x, (D,), gamma, beta) @ uvqk[i]).split(D, 1)
        a, kv = attend(*[part.view(-1, HEADS, D_HEAD).transpose(0, 1) for part in (q, k, v)])
        a = a.transpose(0, 1).reshape(-1, D)
        return (u * functional.layer_norm(a, (D,), gamma, beta)) @ out[i] + x, kv

    def encode(x):
        """History x (N, D) -> K, V per layer."""

        def attend(q, k, v):
            rows = []
            for c in range(N // CHUNK):
                own = slice(c * CHUNK, (c + 1) * CHUNK)
                y = (functional.silu(q[:, own] @ k[:, own].transpose(1, 2) * ALPHA) * causal) @ v[:, own]
                if c:
                    past = slice(0, c * CHUNK)
                    y = y + functional.silu(q[:, own] @ k[:, past].transpose(1, 2) * ALPHA) @ v[:, past]
                rows.append(y)
            return torch.cat(rows, 1) / N, (k, v)

        kvs = []
        for i in range(LAYERS):
            x, kv = layer(x, i, attend)
            kvs.append(kv)
        return kvs

    def score(x, kvs, b):
        """Candidates x (m, D) against K, V, in micro-batches of b."""
        rows = []
        for start in range(0, len(x), b):
            y = x[start : start + b]
            for i in range(LAYERS):
                past_k, past_v = kvs[i]

                def attend(q, k, v):
                    own = functional.silu((q * k).sum(-1, keepdim=True) * ALPHA) * v
                    return (functional.silu(q @ past_k.transpose(1, 2) * ALPHA) @ past_v + own) / N, None

                y, _ = layer(y, i, attend)
            rows.append(y)
        return torch.cat(rows)

    def operators(kv):
        """Parts of a layer, as bench/kernels-cpu.ts names them."""

        def candidates(m):
            q, k, v = (torch.randn(HEADS, m, D_HEAD).to(dtype) for _ in range(3))
            past_k, past_v = kv
            own = lambda: functional.silu((q * k).sum(-1, keepdim=True) * ALPHA) * v
            return lambda: (functional.silu(q @ past_k.transpose(1, 2) * ALPHA) @ past_v + own()) / N

        x, u, a = torch.randn(M, D).to(dtype), torch.randn(M, D).to(dtype), torch.randn(M, D).to(dtype)
        return {
            "HstuAttention, m = 256": candidates(256),
            "HstuAttention, m = 1,024": candidates(1024),
            "HstuGate, 1,024 rows": lambda: u * functional.layer_norm(a, (D,), gamma, beta),
            "HstuLinearSilu, 1,024 x 512 x 2,048": lambda: functional.silu(x @ uvqk[0]),
            "HstuLinearBiasResidual, 1,024 x 512 x 512": lambda: x @ out[0] + beta + a,
        }

    with torch.inference_mode():
        square = torch.randn(4096, 4096).to(dtype)
        history, candidates = torch.randn(N, D).to(dtype), torch.randn(M, D).to(dtype)
        kvs = encode(history)
        return {
            "encodeMs": median_ms(lambda: encode(history), 5),
            "scoreMs": {str(b): median_ms(lambda: score(candidates, kvs, b), 7) for b in (64, 128, 256, 512, 1024)},
            "wholeMs": {str(m): median_ms(lambda: score(candidates[:m], kvs, m), 7) for m in (256, 1024)},
            "opMs": {name: median_ms(run, 15) for name, run in operators(kvs[0]).items()},
            "peakTflops": 2 * 4096**3 / median_ms(lambda: square @ square, 3) / 1e9,
        }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(7)
    print(json.dumps({"torch": torch.__version__, "fp32": measure(torch.float32), "bf16": measure(torch.bfloat16)}))
