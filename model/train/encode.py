"""Raw values -> table rows, by the encodings that config.json carries.

Row 0 of every table is "unknown or missing". Three encodings: `vocabulary` (a list of strings), `hash` (FNV-1a, 32 bit),
`bucket` (edges of a number). The same three are implemented by whoever serves the model, so they are kept this plain.
"""

from bisect import bisect_right
from collections import Counter

import numpy as np

from data import ACTIONS, EARLIER, TASKS

CONTEXT = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "register_days_range",
    "onehot_feat1",
    "onehot_feat6",
)
MIN_USERS_OF_A_VALUE = 50  # a rarer user attribute is not coarse: it goes to row 0
# fmt: off
DURATION_EDGES_SECONDS = (
    7, 8, 9, 10, 11, 12, 13, 15, 17, 20, 24, 28, 33, 39, 46, 54, 63, 73, 85, 100, 115, 135, 160, 190, 230, 300, 450,
)
# fmt: on


def fnv1a(text):
    """FNV-1a, 32 bit, over the UTF-8 bytes."""
    value = 0x811C9DC5
    for byte in text.encode("utf-8"):
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


class Encoder:
    """Turns one raw value into the row of one table. `slot` is {name, rows, encoding}, `values` its vocabulary."""

    def __init__(self, slot, values=None):
        self.rows = slot["rows"]
        self.encoding = slot["encoding"]
        self.row_of = {value: i + 1 for i, value in enumerate(values or [])}

    def __call__(self, value):
        """Row of a string or number; None is missing."""
        if value is None:
            return 0
        kind = self.encoding["kind"]
        if kind == "bucket":
            return 1 + bisect_right(self.encoding["edges"], value)
        text = value if isinstance(value, str) else str(value)
        if kind == "hash":
            return 1 + fnv1a(text) % (self.rows - 1)
        return self.row_of.get(text, 0)


def vocabulary_slot(name, values):
    """Slot with one row per value, plus row 0."""
    encoding = {"kind": "vocabulary", "file": f"vocabularies/{name}.json"}
    return {"name": name, "rows": len(values) + 1, "encoding": encoding}


def make_slots(data, last_day, min_count, author_rows):
    """(context slots, item feature slots, {name: vocabulary}) for training on events up to `last_day`.

    A video seen less than `min_count` times by then has no row of its own: an untrained row would say less than row 0,
    which training visits on purpose (--id-dropout).
    """
    vocabularies = {}
    for name in CONTEXT:
        counts = Counter(features.get(name, "") for features in data.user_features)
        vocabularies[name] = sorted(v for v, n in counts.items() if v and n >= MIN_USERS_OF_A_VALUE)
    context = [vocabulary_slot(name, vocabularies[name]) for name in CONTEXT]

    counts = np.bincount(data.video[data.day <= last_day], minlength=len(data.video_ids))
    vocabularies["video_id"] = [v for v, n in zip(data.video_ids, counts.tolist(), strict=True) if n >= min_count]
    vocabularies["tag"] = sorted({tag for _, tag, _ in data.videos.values() if tag is not None})
    logged = (data.day > EARLIER) & (data.day <= last_day)
    vocabularies["tab"] = [str(tab) for tab in np.unique(data.tab[logged]).tolist()]
    edges = [1000 * seconds for seconds in DURATION_EDGES_SECONDS]
    items = [
        vocabulary_slot("video_id", vocabularies["video_id"]),
        {"name": "author", "rows": author_rows, "encoding": {"kind": "hash"}},
        vocabulary_slot("tag", vocabularies["tag"]),
        {"name": "duration", "rows": len(edges) + 2, "encoding": {"kind": "bucket", "edges": edges}},
        vocabulary_slot("tab", vocabularies["tab"]),
    ]
    return context, items, vocabularies


def make_config(data, last_day, options):
    """(config.json as a dict, {name: vocabulary}); `options` are the command line's."""
    context, items, vocabularies = make_slots(data, last_day, options.min_count, options.author_rows)
    config = {
        "variant": "paper",
        "name": "kuairand-demo",
        "dModel": options.width,
        "heads": options.heads,
        "dqk": options.head_width or options.width // options.heads,
        "dv": options.head_width or options.width // options.heads,
        "layers": options.layers,
        "maxTokens": options.max_tokens,
        "positions": options.positions,
        "timeBuckets": 128,
        "headHidden": options.head_hidden,
        "layerNormEps": 1e-6,
        "context": context,
        "itemFeatures": items,
        "itemId": "video_id",
        "actions": list(ACTIONS),
        "unobservedAction": "click_unknown",
        "auxiliary": [],
        "tasks": [{"name": name, "type": "binary"} for name in TASKS],
        "catalogue": "items.json",
        "weights": {"click": 1, "long_view": 1, "like": 2},
    }
    return config, vocabularies


def encoders(slots, vocabularies):
    """{slot name: Encoder}."""
    return {slot["name"]: Encoder(slot, vocabularies.get(slot["name"])) for slot in slots}


def encode_context(data, config, vocabularies):
    """Rows of the context tokens, (U, C) int64."""
    encode = encoders(config["context"], vocabularies)
    rows = [[encode[name](features.get(name) or None) for name in encode] for features in data.user_features]
    return np.array(rows, dtype=np.int64)


def encode_items(data, config, vocabularies):
    """Rows of the item features of every event, (M, F) int64, in the order of the config's itemFeatures."""
    encode = encoders(config["itemFeatures"], vocabularies)
    video_rows = np.array(
        [
            (encode["video_id"](video), encode["author"](author), encode["tag"](tag), encode["duration"](duration))
            for video, (author, tag, duration) in data.videos.items()
        ]
    )
    tabs = [encode["tab"](str(tab)) for tab in range(max(0, data.tab.max()) + 1)] + [0]  # tab -1: the last entry
    return np.concatenate([video_rows[data.video], np.array(tabs)[data.tab][:, None]], axis=1).astype(np.int64)
