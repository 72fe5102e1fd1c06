"""Ranks every user's last item over the whole catalogue.

    python evaluate.py --data FILE [--items FILE] --model DIR

The authors' protocol: the history is the last events before it, up to the model's limit, and the items of that history
are not candidates.
"""

import argparse
import json
from pathlib import Path

import torch

from checkpoint import read_model
from data import read_interactions, windows_of

HR = (1, 10, 50, 200)
NDCG = (10, 50, 200)


def metrics(ranks):
    """Hit rate and NDCG with one relevant item, from its ranks (U,), 1 the best -> {name: float}."""
    ranks = ranks.double()
    gain = 1 / torch.log2(ranks + 1)
    values = {f"HR@{k}": (ranks <= k).double().mean() for k in HR}
    values |= {f"NDCG@{k}": torch.where(ranks <= k, gain, 0).mean() for k in NDCG}
    return {name: float(value) for name, value in (values | {"MRR": (1 / ranks).mean()}).items()}


def ranks_of(scores, target):
    """Rank of column `target` (B,) in its row of scores (B, C), equals in the columns' order; one that is -inf, which is
    filtered, comes after all."""
    own = scores.gather(1, target[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < target[:, None]
    better = (scores > own) | ((scores == own) & earlier)
    return torch.where(own[:, 0].isinf(), scores.shape[1], better.sum(1)) + 1


@torch.no_grad()
def target_ranks(model, windows, candidates, batch=256):
    """Ranks (U,) of each window's last event; candidates (C,) are item rows. Everything on the model's device."""
    was_training = model.training
    model.eval()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    vectors = model.item_vectors()[candidates]
    column = candidates.new_full((model.config["items"] + 1,), len(candidates))
    column[candidates] = torch.arange(len(candidates), device=candidates.device)
    ranks = []
    for start in range(0, len(windows), batch):
        part = windows.take(slice(start, start + batch))
        last = part.lengths[:, None] - 1
        target = part.rows.gather(1, last)
        history = part.rows.scatter(1, last, 0)[:, :-1]
        users = model(history, part.times).gather(1, (last - 1)[..., None].expand(-1, -1, vectors.shape[1]))
        scores = torch.cat([users[:, 0] @ vectors.T, users.new_zeros(len(users), 1)], dim=1)
        seen = scores.scatter(1, column[history], float("-inf"))
        seen[:, -1] = float("-inf")  # what is no candidate
        ranks.append(ranks_of(seen, column[target[:, 0]]))
    torch.set_float32_matmul_precision(precision)
    model.train(was_training)
    return torch.cat(ranks)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--items")
    parser.add_argument("--model", required=True)
    parser.add_argument("--ranks", help="file for {user: rank} as JSON")
    options = parser.parse_args()
    data = read_interactions(options.data, options.items)
    model = read_model(options.model)
    windows = windows_of(data, model.config["maxSequenceLen"], leave_out=0)
    ranks = target_ranks(model, windows, torch.from_numpy(data.candidates))
    print(json.dumps(metrics(ranks) | {"users": len(ranks), "candidates": len(data.candidates)}))
    if options.ranks:
        by_user = {data.users[u]: rank for u, rank in zip(windows.users.tolist(), ranks.tolist(), strict=True)}
        Path(options.ranks).write_text(json.dumps(by_user) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
