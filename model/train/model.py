"""The `paper` HSTU ranking model in PyTorch, a batch of padded sequences at a time.

Parameter names, shapes and orientations are those of the exported weights, so `state_dict()` is the file. Sequences are
padded on the right. A token only sees tokens to its left, so padding changes nothing: no mask for it exists anywhere,
and what the padded rows hold is never read.

Letters in the shapes: B sequences, L tokens, C context tokens, E events, D model width, H heads, T tasks.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from table_bias import TableBias

EDGES = torch.tensor([math.ceil(math.exp(0.301 * k)) for k in range(1, 128)], dtype=torch.int64)


def time_buckets(seconds):
    """Time bucket of whole-second differences, int64 of any shape: clamp(floor(ln(max(s, 1)) / 0.301), 0, 127).

    Counts the edges ceil(e^(0.301 k)) <= s, which is exact; a float32 logarithm is not.
    """
    edges = EDGES.to(seconds.device)
    return torch.bucketize(seconds, edges, right=True)


class Matrix(nn.Module):
    """x @ weight (+ bias) with the weight stored (in, out)."""

    def __init__(self, inputs, outputs, bias, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x):
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def table(rows, width, std):
    """An embedding table (rows, width) with small normal entries."""
    embedding = nn.Embedding(rows, width)
    nn.init.normal_(embedding.weight, std=std)
    return embedding


class Layer(nn.Module):
    """One HSTU layer.

    The divisor N is hundreds of tokens, so attention results are small next to the layer norm's eps of 1e-6 if the
    projections start small too. uvqk therefore starts at 1/sqrt(D): its outputs have unit scale before SiLU, and the
    variance of `a` starts near 1e-5 for ten tokens and 1e-4 for a hundred.
    """

    def __init__(self, config, dropout):
        super().__init__()
        width, eps = config["dModel"], config["layerNormEps"]
        self.heads, self.dqk, self.dv = config["heads"], config["dqk"], config["dv"]
        self.divisor, self.dropout = config["maxTokens"], dropout
        inner = self.heads * self.dv
        self.norm_in = nn.LayerNorm(width, eps)
        self.uvqk = Matrix(width, 2 * inner + 2 * self.heads * self.dqk, bias=False, std=width**-0.5)
        self.norm_attn = nn.LayerNorm(inner, eps)
        self.out = Matrix(inner, width, bias=True, std=(2 * config["layers"] * inner) ** -0.5)
        self.pos_w = nn.Parameter(torch.zeros(config["positions"]))
        self.time_w = nn.Parameter(torch.zeros(config["timeBuckets"]))

    def forward(self, x, distance, bucket, mask):
        """x (B, L, D), distance and mask (L, L), bucket (B, L, L) -> (y (B, L, D), k and v (B, H, L, dqk or dv))."""
        B, L, _ = x.shape
        inner, qk = self.heads * self.dv, self.heads * self.dqk
        u, v, q, k = F.silu(self.uvqk(self.norm_in(x))).split([inner, inner, qk, qk], dim=-1)
        v = v.view(B, L, self.heads, self.dv).transpose(1, 2)
        q = q.view(B, L, self.heads, self.dqk).transpose(1, 2)
        k = k.view(B, L, self.heads, self.dqk).transpose(1, 2)
        positions = self.pos_w[distance.clamp(max=len(self.pos_w) - 1)]  # (L, L)
        bias = positions + TableBias.apply(self.time_w, bucket)  # (B, L, L)
        scores = F.silu(q @ k.transpose(-1, -2) + bias[:, None]) * (mask / self.divisor)  # (B, H, L, L)
        a = (scores @ v).transpose(1, 2).reshape(B, L, inner)
        gated = F.dropout(u * self.norm_attn(a), self.dropout, self.training)
        return self.out(gated) + x, k, v


class Head(nn.Module):
    """Multi-task head: rows (..., D) -> logits (..., T)."""

    def __init__(self, config, dropout):
        super().__init__()
        width, hidden = config["dModel"], config["headHidden"]
        self.dropout = dropout
        self.norm = nn.LayerNorm(width, config["layerNormEps"])
        self.fc1 = Matrix(width, hidden, bias=True, std=width**-0.5)
        self.fc2 = Matrix(hidden, len(config["tasks"]), bias=True, std=0.5 * hidden**-0.5)

    def forward(self, y):
        hidden = F.dropout(F.silu(self.fc1(self.norm(y))), self.dropout, self.training)
        return self.fc2(hidden)


class Hstu(nn.Module):
    """Tables, layers and head. `config` is config.json (a golden case's config works as well)."""

    def __init__(self, config, dropout=0.0, embedding_dropout=0.0, action_dropout=0.0, table_std=0.02):
        super().__init__()
        width = config["dModel"]
        self.config, self.scale = config, math.sqrt(width)
        self.embedding_dropout, self.action_dropout = embedding_dropout, action_dropout
        self.ctx = nn.ModuleDict({s["name"]: table(s["rows"], width, table_std) for s in config["context"]})
        self.item = nn.ModuleDict({f["name"]: table(f["rows"], width, table_std) for f in config["itemFeatures"]})
        own = [s for s in config["auxiliary"] if "rows" in s]
        self.aux = nn.ModuleDict({s["name"]: table(s["rows"], width, table_std) for s in own})
        self.action = table(len(config["actions"]), width, table_std)
        self.action_base = nn.Parameter(torch.randn(width) * table_std)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config["layers"]))
        self.head = Head(config, dropout)

    def embed_context(self, rows):
        """Context rows (B, C) -> tokens (B, C, D)."""
        return self.scale * torch.stack([t(rows[:, i]) for i, t in enumerate(self.ctx.values())], dim=1)

    def embed_items(self, rows):
        """Item feature rows (B, E, F) -> tokens (B, E, D)."""
        return self.scale * sum(t(rows[..., i]) for i, t in enumerate(self.item.values()))

    def embed_actions(self, masks):
        """Action bit masks (B, E) -> tokens (B, E, D)."""
        bits = (masks[..., None] >> torch.arange(len(self.action.weight), device=masks.device)) & 1
        return self.scale * (bits.to(self.action.weight.dtype) @ self.action.weight + self.action_base)

    def encode(self, x, distance, bucket, mask):
        """Tokens through all layers: (B, L, D) -> (B, L, D)."""
        x = F.dropout(x, self.embedding_dropout, self.training)
        for layer in self.layers:
            x, _, _ = layer(x, distance, bucket, mask)
        return x

    def forward(self, context, items, actions, t):
        """One causal pass that scores every event's item as a candidate of its own moment.

        context (B, C), items (B, E, F), actions (B, E) bit masks, t (B, E) seconds -> logits (B, E, T).
        The item token of event i stands at position C + 2i and sees the context, the events before it and itself: what
        a candidate sees that is scored at t_i with those events as its history.
        """
        B, E = actions.shape
        C = context.shape[1]
        action = self.embed_actions(actions)
        if self.training and self.action_dropout:
            action = action * (torch.rand(B, E, 1, device=action.device) >= self.action_dropout)
        pairs = torch.stack([self.embed_items(items), action], dim=2)  # (B, E, 2, D)
        x = torch.cat([self.embed_context(context), pairs.view(B, 2 * E, -1)], dim=1)  # (B, L, D)
        times = torch.cat([t[:, :1].expand(B, C), t.repeat_interleave(2, dim=1)], dim=1)  # (B, L)
        place = torch.arange(C + 2 * E, device=x.device)
        distance = (place[:, None] - place).clamp(min=0)
        mask = (place[:, None] >= place).to(x.dtype)
        bucket = time_buckets(times[:, :, None] - times[:, None, :])
        return self.head(self.encode(x, distance, bucket, mask)[:, C::2])
