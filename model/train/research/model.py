"""The `research` HSTU of next-item retrieval in PyTorch, a batch of padded sequences at a time.

Sequences are padded on the right with item row 0. A token sees only what is to its left, so padding changes nothing.

Letters in the shapes: B sequences, L tokens, D model width, H heads, N the divisor.
"""

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind this folder, whose files have the same names
from table_bias import TableBias  # noqa: E402

TIME_BUCKETS = 129
EDGES = torch.tensor([math.ceil(math.exp(0.301 * k)) for k in range(1, TIME_BUCKETS)], dtype=torch.int64)


def time_buckets(seconds):
    """Bucket of whole-second differences, int64 of any shape: clamp(trunc(ln(max(|s|, 1)) / 0.301), 0, 128), exactly."""
    return torch.bucketize(seconds.abs(), EDGES.to(seconds.device), right=True)


def truncated_normal_(tensor, std):
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def normalized(x, eps):
    """x / max(‖x‖, eps) along the last axis."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=eps)


class Layer(nn.Module):
    """One HSTU layer; layer norms have no weights of their own."""

    def __init__(self, config, dropout):
        super().__init__()
        width, self.heads, self.dqk, self.dv = (config[name] for name in ("dModel", "heads", "dqk", "dv"))
        self.eps, self.divisor, self.dropout = config["layerNormEps"], config["divisor"], dropout
        inner = self.heads * self.dv
        self.uvqk = nn.Parameter(0.02 * torch.randn(width, 2 * inner + 2 * self.heads * self.dqk))
        self.out = nn.Linear(inner, width)
        nn.init.xavier_uniform_(self.out.weight)
        self.pos_w = nn.Parameter(0.02 * torch.randn(self.divisor))  # by distance into the past
        self.time_w = nn.Parameter(0.02 * torch.randn(TIME_BUCKETS))

    def norm(self, x):
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def forward(self, x, distance, bucket, mask):
        """x (B, L, D), distance and mask (L, L), bucket (B, L, L) -> (B, L, D)."""
        B, L, _ = x.shape
        inner, qk = self.heads * self.dv, self.heads * self.dqk
        u, v, q, k = F.silu(self.norm(x) @ self.uvqk).split([inner, inner, qk, qk], dim=-1)
        v = v.view(B, L, self.heads, self.dv).transpose(1, 2)
        q = q.view(B, L, self.heads, self.dqk).transpose(1, 2)
        k = k.view(B, L, self.heads, self.dqk).transpose(1, 2)
        bias = self.pos_w[distance] + TableBias.apply(self.time_w, bucket)  # (B, L, L)
        scores = F.silu(q @ k.transpose(-1, -2) + bias[:, None]) * mask  # (B, H, L, L)
        a = (scores @ v).transpose(1, 2).reshape(B, L, inner)
        return self.out(F.dropout(u * self.norm(a), self.dropout, self.training)) + x


class Hstu(nn.Module):
    """Item and position tables and the layers. `config` is config.json with its defaults filled in."""

    def __init__(self, config, dropout=0.0):
        super().__init__()
        width = config["dModel"]
        self.config, self.dropout, self.eps = config, dropout, config["outputNormEps"]
        self.items = nn.Parameter(truncated_normal_(torch.empty(config["items"] + 1, width), 0.02))
        self.positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(config["divisor"], width)))
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config["layers"]))

    def item_vectors(self):
        """Unit vectors of all item rows, padding's too: (items + 1, D)."""
        return normalized(self.items, self.eps)

    def forward(self, rows, times):
        """Users before each of their next events, as unit vectors.

        rows (B, L) items, oldest first; times (B, L + 1), of these and of the event after the last -> (B, L, D).
        """
        L = rows.shape[1]
        place = torch.arange(L, device=rows.device)
        distance = (place[:, None] - place).clamp(min=0)
        mask = (place[:, None] >= place) / self.config["divisor"]
        # Row i compares with the time of event i + 1: the moment of its prediction.
        bucket = time_buckets(times[:, 1:, None] - times[:, None, :-1])
        x = F.embedding(rows, self.items) * math.sqrt(self.items.shape[1]) + self.positions[:L]
        x = F.dropout(x, self.dropout, self.training) * (rows != 0)[..., None]
        for layer in self.layers:
            x = layer(x, distance, bucket, mask)
        return normalized(x, self.eps)
