"""Real request bodies from the test days, what happened next, and the model's logits on some of them.

    python sample_requests.py --data DIR --model DIR [--seed 1]

writes requests/0001.json ..., labels.json and expected-logits.json into the model folder. A request stands at the moment
of one test exposure: the history is everything before it; the candidates are the videos the user was really shown from
then to the end of that day, and other videos that were shown to anyone that day, all in the tab of that exposure.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from data import ACTIONS, CLICK_UNKNOWN, FIRST_TEST_DAY, load
from encode import CONTEXT
from evaluate import exact_float32
from export import load_model, write_json
from score import Scorer

REQUESTS, LONG_REQUESTS = 200, 10
CANDIDATES, LONG_CANDIDATES = 100, 500
WITH_LOGITS = 50


def action_names(mask):
    """Names of the set bits, in their order."""
    return [name for bit, name in enumerate(ACTIONS) if mask >> bit & 1]


def choose_moments(data, rng):
    """Event numbers of the requests' moments, one per user.

    The first is a user with no event before it, the second the moment with the longest history; the others are drawn
    evenly over history length (a third from each third of the moments), so that short and long ones both occur.
    """
    is_test = data.day >= FIRST_TEST_DAY
    user = np.repeat(np.arange(len(data.users)), np.diff(data.offsets))
    before = np.arange(len(data.day)) - data.offsets[user]
    test = np.flatnonzero(is_test)
    empty = test[before[test] == 0]
    chosen = [int(rng.choice(empty))] if len(empty) else []
    chosen.append(int(test[np.argmax(before[test])]))
    used = set(user[chosen].tolist())
    thirds = np.array_split(test[np.argsort(before[test], kind="stable")], 3)
    turn = 0
    while len(chosen) < REQUESTS:
        event = int(rng.choice(thirds[turn % 3]))
        turn += 1
        if int(user[event]) not in used:
            used.add(int(user[event]))
            chosen.append(event)
    fixed, drawn = chosen[: REQUESTS - 198], np.array(chosen[REQUESTS - 198 :])
    rng.shuffle(drawn)
    return fixed + drawn.tolist(), user


def request_features(tab):
    """Features that a request carries itself; none when the tab is missing."""
    return {"features": {"tab": str(tab)}} if tab >= 0 else {}


def make_request(data, user, event, count, shown, rng):
    """(request body, {video: actions} of the true exposures) at the moment of one event; `shown` are the day's videos."""
    u = int(user[event])
    begin, end = int(data.offsets[u]), int(data.offsets[u + 1])
    history = [
        {
            "item": data.video_ids[data.video[e]],
            "time": int(data.t[e]),
            "actions": action_names(int(data.actions[e])),
            **request_features(int(data.tab[e])),
        }
        for e in range(begin, event)
    ]
    later = [e for e in range(event, end) if data.day[e] == data.day[event]]
    truth = {}
    for e in later:
        truth.setdefault(data.video_ids[data.video[e]], action_names(int(data.actions[e])))
    others = [v for v in rng.permutation(shown).tolist() if data.video_ids[v] not in truth]
    items = list(truth) + [data.video_ids[v] for v in others[: max(0, count - len(truth))]]
    tab = request_features(int(data.tab[event]))
    candidates = [{"item": items[i], **tab} for i in rng.permutation(len(items))]
    features = {name: data.user_features[u][name] for name in CONTEXT if data.user_features[u].get(name)}
    body = {"user": {"id": data.users[u], "features": features}, "time": int(data.t[event])}
    return body | {"history": history, "candidates": candidates}, truth


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the KuaiRand-Pure files")
    parser.add_argument("--model", required=True, type=Path, help="folder written by train.py")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    exact_float32()
    rng = np.random.default_rng(options.seed)
    data = load(options.data)
    catalogue = json.loads((options.model / "items.json").read_text(encoding="utf-8"))
    score = Scorer(*load_model(options.model), catalogue)
    moments, user = choose_moments(data, rng)
    shown = {int(day): np.unique(data.video[data.day == day]) for day in np.unique(data.day[moments])}
    labels, logits = {}, {}
    folder = options.model / "requests"
    for old in folder.glob("*.json"):
        old.unlink()
    for i, event in enumerate(moments):
        name = f"{i + 1:04}.json"
        count = LONG_CANDIDATES if i % (REQUESTS // LONG_REQUESTS) == REQUESTS // LONG_REQUESTS - 1 else CANDIDATES
        body, truth = make_request(data, user, event, count, shown[int(data.day[event])], rng)
        write_json(folder / name, body)
        labels[name] = truth
        if count == CANDIDATES and len(logits) < WITH_LOGITS:
            logits[name] = [[float(f"{x:.7g}") for x in row] for row in score(body).tolist()]
    write_json(options.model / "labels.json", labels)
    write_json(options.model / "expected-logits.json", logits)
    lengths = [int(e - data.offsets[user[e]]) for e in moments]
    unknown = sum(bool(data.actions[e] & CLICK_UNKNOWN) for e in moments)
    assert unknown == 0, "a moment is a log row, and those know their click"
    size = sum(p.stat().st_size for p in folder.glob("*.json"))
    print(f"{len(moments)} requests, {size / 1e6:.2f} MB, histories of {min(lengths)} to {max(lengths)} events")


if __name__ == "__main__":
    main()
