"""Checks the PyTorch model against the golden cases of the `paper` variant, and the batched pass against single requests.

    python check.py --golden DIR [--data DIR --model DIR]

The golden folder holds the cases plain, auxiliary and limit. Every tensor of expected.safetensors must come out within
1e-4. With data and a trained model, real test rows are scored one by one from a request body as well, the longest
histories and empty ones among them, and once more with a limit so small that histories are cut.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from batches import Sequences, room_for_events, target_windows
from data import FIRST_TEST_DAY, LAST_TEST_DAY, load
from encode import encode_context, encode_items
from evaluate import predict
from export import load_model
from model import Hstu
from sample_requests import make_request
from score import Scorer, score_tokens

CASES = ("plain", "auxiliary", "limit")
TOLERANCE = 1e-4


def embed(model, weights, token):
    """One token of `built` -> (D,): the rows or action types it names, scaled."""
    if "types" in token:
        rows = [model.config["actions"].index(name) for name in token["types"]]
        vector = weights["action_base"] + weights["action.weight"][rows].sum(dim=0)
    else:
        rows = token.get("rows", token)  # a candidate is the rows alone
        vector = sum(weights[f"{name}.weight"][row] for name, row in rows.items())
    return model.scale * vector


@torch.no_grad()
def check_case(folder):
    """Largest absolute difference over all requests and tensors of a case."""
    config = json.loads((folder / "config.json").read_text())
    expected = load_file(folder / "expected.safetensors")
    weights = load_file(folder / "weights.safetensors")
    model = Hstu(config).eval()
    model.load_state_dict(weights)
    worst = 0.0
    for request in json.loads((folder / "inputs.json").read_text())["requests"]:
        built, width = request["built"], config["dModel"]
        history = torch.stack([embed(model, weights, token) for token in built["tokens"]])
        candidates = [embed(model, weights, rows) for rows in built["candidates"]]
        candidates = torch.stack(candidates) if candidates else torch.zeros(0, width)
        times = [token["t"] for token in built["tokens"]]
        got = {"tokens": history, **score_tokens(model, history, times, candidates, request["queryTime"])}
        binary = torch.tensor([task["type"] == "binary" for task in config["tasks"]])
        got["predictions"] = torch.where(binary, torch.sigmoid(got["logits"]), got["logits"])
        wanted = {name.split(".", 1)[1] for name in expected if name.startswith(request["name"] + ".")}
        assert wanted == set(got), wanted ^ set(got)
        for name, value in got.items():
            target = expected[f"{request['name']}.{name}"]
            assert value.shape == target.shape, (request["name"], name, value.shape, target.shape)
            if value.numel():
                worst = max(worst, float((value - target).abs().max()))
    return worst


@torch.no_grad()
def check_batch(seed=0):
    """Largest difference between the padded causal pass and every event scored alone as a candidate of its moment."""
    torch.manual_seed(seed)
    names = [{"name": "a", "rows": 9}, {"name": "b", "rows": 7}]
    config = {"dModel": 16, "heads": 2, "dqk": 6, "dv": 8, "layers": 3, "maxTokens": 64, "positions": 20}
    config |= {"timeBuckets": 128, "headHidden": 8, "layerNormEps": 1e-6, "auxiliary": [], "actions": ["x", "y", "z"]}
    config |= {"context": names, "itemFeatures": names, "tasks": [{"name": "p"}, {"name": "q"}]}
    model = Hstu(config, table_std=0.3).eval()
    for layer in model.layers:
        torch.nn.init.normal_(layer.pos_w)
        torch.nn.init.normal_(layer.time_w)
    lengths = (1, 5, 12)
    B, E = len(lengths), max(lengths)
    context, items = torch.randint(7, (B, 2)), torch.randint(7, (B, E, 2))
    actions = torch.randint(8, (B, E))
    t = 1_650_000_000 + torch.randint(100_000, (B, E)).cumsum(1)
    logits = model(context, items, actions, t)
    worst = 0.0
    for b, length in enumerate(lengths):
        embedded = model.embed_context(context), model.embed_items(items), model.embed_actions(actions)
        ctx, item, action = (x[b] for x in embedded)
        for e in range(length):
            history = torch.cat([ctx, torch.stack([item[:e], action[:e]], 1).flatten(0, 1)])
            times = [int(t[b, 0])] * 2 + t[b, :e].repeat_interleave(2).tolist()
            alone = score_tokens(model, history, times, item[e : e + 1], int(t[b, e]))["logits"][0]
            worst = max(worst, float((logits[b, e] - alone).abs().max()))
    return worst


@torch.no_grad()
def check_moments(data, folder, max_tokens=None, count=60, seed=0):
    """Largest difference between the evaluation's pass and test rows scored alone from their request bodies."""
    model, config, vocabularies = load_model(folder)
    if max_tokens:
        config["maxTokens"] = max_tokens
        for layer in model.layers:
            layer.divisor = max_tokens
    score = Scorer(model, config, vocabularies, json.loads((folder / "items.json").read_text(encoding="utf-8")))
    context, items = encode_context(data, config, vocabularies), encode_items(data, config, vocabularies)
    user = np.repeat(np.arange(len(data.users)), np.diff(data.offsets))
    before = np.arange(len(user)) - data.offsets[user]
    test = np.flatnonzero(data.day >= FIRST_TEST_DAY)
    test = test[np.argsort(before[test], kind="stable")]
    chosen = np.random.default_rng(seed).choice(test, count, replace=False)
    chosen = np.unique(np.concatenate([test[:3], chosen, test[-3:]]))
    windows, first = target_windows(data, FIRST_TEST_DAY, LAST_TEST_DAY, room_for_events(config))
    rows = np.flatnonzero(np.isin(windows.user, user[chosen]))
    is_target = torch.zeros(len(user), dtype=torch.bool)
    is_target[chosen] = True
    sequences = Sequences(data, context, items, "cpu")
    events, logits = predict(model, sequences, windows.take(rows), first[rows], is_target)
    assert sorted(events.tolist()) == sorted(chosen.tolist()), "every chosen row exactly once"
    worst = 0.0
    for event, expected in zip(events.tolist(), logits, strict=True):
        body, _ = make_request(data, user, event, 0, np.array([], dtype=int), np.random.default_rng(seed))
        video = data.video_ids[data.video[event]]
        at = [candidate["item"] for candidate in body["candidates"]].index(video)
        worst = max(worst, float((score(body)[at] - torch.from_numpy(expected)).abs().max()))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", required=True, type=Path, help="folder with the cases plain, auxiliary, limit")
    parser.add_argument("--data", help="folder of the KuaiRand-Pure files")
    parser.add_argument("--model", type=Path, help="folder written by train.py")
    options = parser.parse_args()
    results = {case: check_case(options.golden / case) for case in CASES} | {"batched causal pass": check_batch()}
    if options.data and options.model:
        data = load(options.data)
        results["test rows alone"] = check_moments(data, options.model)
        results["test rows alone, cut to 60 tokens"] = check_moments(data, options.model, max_tokens=60)
    for name, worst in results.items():
        print(f"{name}: largest difference {worst:.2e} ({'ok' if worst <= TOLERANCE else 'TOO LARGE'})")
    raise SystemExit(any(worst > TOLERANCE for worst in results.values()))


if __name__ == "__main__":
    main()
