"""Checks the PyTorch model against golden cases that the public research code computed, and the metrics by hand.

    python check.py --golden DIR...

Users' vectors and scores must come out within 1e-4, from a single user and from all of a case in one padded batch.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from checkpoint import read_model
from evaluate import metrics, ranks_of

TOLERANCE = 1e-4


@torch.no_grad()
def check_case(folder):
    """Largest absolute difference over all users and tensors of a case."""
    model = read_model(folder)
    expected = load_file(folder / "expected.safetensors")
    users = json.loads((folder / "inputs.json").read_text())["users"]
    length = max(len(user["itemIds"]) for user in users)
    vectors = model.item_vectors()[1:]

    def encode(group, length):
        rows = torch.tensor([user["itemIds"] + [0] * (length - len(user["itemIds"])) for user in group])
        times = [user["timestamps"] + [user["queryTime"]] for user in group]
        return model(rows, torch.tensor([t + [t[-1]] * (length + 1 - len(t)) for t in times]))

    worst = 0.0
    together = encode(users, length)
    for user, padded in zip(users, together, strict=True):
        n = len(user["itemIds"])
        for encoded in (encode([user], n)[0], padded[:n]):
            got = {"encoded": encoded, "vector": encoded[-1], "scores": vectors @ encoded[-1]}
            for name, value in got.items():
                worst = max(worst, float((value - expected[f"{user['name']}.{name}"]).abs().max()))
    return worst


def check_metrics():
    """Ranks with ties and filtered items; rates and gains of four ranks."""
    none = float("-inf")
    scores = torch.tensor([[0.5, 0.9, 0.1], [0.5, 0.5, 0.9], [0.5, 0.5, none], [0.9, none, 0.1]])
    assert ranks_of(scores, torch.tensor([0, 1, 0, 1])).tolist() == [2, 3, 1, 4]
    got = metrics(torch.tensor([1, 3, 11, 500]))
    wanted = {"HR@1": 0.25, "HR@10": 0.5, "HR@50": 0.75, "HR@200": 0.75, "NDCG@10": (1 + 1 / 2) / 4}
    wanted |= {"NDCG@200": (1 + 1 / 2 + 1 / math.log2(12)) / 4, "MRR": (1 + 1 / 3 + 1 / 11 + 1 / 500) / 4}
    assert all(abs(got[name] - value) < 1e-12 for name, value in wanted.items()), got


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", nargs="+", required=True, type=Path)
    arguments = parser.parse_args()
    check_metrics()
    for folder in arguments.golden:
        worst = check_case(folder)
        print(f"{folder}: largest difference {worst:.1e}")
        if not worst < TOLERANCE:
            raise SystemExit(f"{folder}: {worst} is not below {TOLERANCE}")


if __name__ == "__main__":
    main()
