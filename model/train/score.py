"""One request at a time, candidates beside the history: what a server computes, and what the sample logits come from.

Letters in the shapes: C context tokens, n history tokens, m candidates, D model width, H heads, T tasks.
"""

import torch

from batches import room_for_events
from encode import encoders
from model import time_buckets


def score_tokens(model, history, times, candidates, query_time):
    """Candidate logits (m, T) of one request from embedded tokens, with what every layer holds.

    history (n, D) and candidates (m, D) are scaled embeddings, times (n) seconds. Every candidate stands at position n,
    at the query time, and sees the history and itself.

    Returns {"candidates": (m, D) rows after the last layer, "logits": (m, T), "k.<i>": (n, H, dqk), "v.<i>": (n, H, dv)}.
    """
    n, m = len(history), len(candidates)
    x = torch.cat([history, candidates])[None]
    t = torch.tensor(list(times) + [query_time] * m, dtype=torch.int64)
    place = torch.arange(n + m).clamp(max=n)
    distance = (place[:, None] - place).clamp(min=0)
    row, column = torch.arange(n + m)[:, None], torch.arange(n + m)
    mask = ((column <= row) & ((column < n) | (column == row))).to(x.dtype)
    bucket = time_buckets(t[:, None] - t)[None]
    result = {}
    for i, layer in enumerate(model.layers):
        x, k, v = layer(x, distance, bucket, mask)
        result[f"k.{i}"], result[f"v.{i}"] = k[0, :, :n].transpose(0, 1), v[0, :, :n].transpose(0, 1)
    result["candidates"] = x[0, n:]
    result["logits"] = model.head(x[0, n:])
    return result


class Scorer:
    """Scores request bodies with a model folder's parts."""

    def __init__(self, model, config, vocabularies, catalogue):
        self.model, self.config, self.catalogue = model.eval(), config, catalogue["items"]
        self.encode_context = encoders(config["context"], vocabularies)
        self.encode_item = encoders(config["itemFeatures"], vocabularies)

    def item_rows(self, entry):
        """Feature rows (F) of a history event or candidate: the catalogue's values, then the request's own over them."""
        names = ("author", "tag", "duration")
        raw = dict(zip(names, self.catalogue.get(entry["item"], (None, None, None)), strict=True))
        raw = {"video_id": entry["item"], **raw, **entry.get("features", {})}
        return [encode(raw.get(name)) for name, encode in self.encode_item.items()]

    @torch.no_grad()
    def __call__(self, request):
        """Logits (m, T) of a request body, candidates in its order."""
        events = sorted(request["history"], key=lambda e: e["time"])  # stable: ties keep their order
        events = events[max(0, len(events) - room_for_events(self.config)) :]
        features = request["user"]["features"]
        context = [encode(features.get(name)) for name, encode in self.encode_context.items()]
        bit = {name: 1 << i for i, name in enumerate(self.config["actions"])}
        history = self.model.embed_context(torch.tensor([context]))
        times = [events[0]["time"] if events else request["time"]] * len(context)
        if events:
            items = self.model.embed_items(torch.tensor([[self.item_rows(e) for e in events]]))
            actions = self.model.embed_actions(torch.tensor([[sum(bit[a] for a in e["actions"]) for e in events]]))
            history = torch.cat([history, torch.stack([items, actions], 2).flatten(1, 2)], 1)
            times += [e["time"] for e in events for _ in range(2)]
        candidates = self.model.embed_items(torch.tensor([[self.item_rows(c) for c in request["candidates"]]]))
        return score_tokens(self.model, history[0], times, candidates[0], request["time"])["logits"]
