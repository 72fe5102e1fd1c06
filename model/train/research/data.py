"""Interactions from a CSV, as one padded sequence per user.

The file has a header and at least the columns user, item and ts (whole seconds), gzipped or not; other columns are not
read. A user's events are taken by time, ties in the order of the file. Who has no known times may have any one time
throughout: negative ones count as 0.
"""

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass
class Interactions:
    """Events of all users, oldest first: item rows and times (M,), users' bounds in them (U + 1,)."""

    users: list
    items: list  # id of row r at r - 1, "" where no item has that row
    candidates: np.ndarray  # (C,) rows of the catalogue, in its order
    rows: np.ndarray
    times: np.ndarray
    bounds: np.ndarray


@dataclass
class Windows:
    """The last events of users (U,), at the front of (U, L + 1), and how many of them there are (U,)."""

    users: torch.Tensor  # places in Interactions.users
    rows: torch.Tensor  # padded with 0
    times: torch.Tensor  # padded with the last time
    lengths: torch.Tensor

    def take(self, index):
        return Windows(self.users[index], self.rows[index], self.times[index], self.lengths[index])

    def to(self, device):
        return Windows(*(x.to(device) for x in (self.users, self.rows, self.times, self.lengths)))

    def __len__(self):
        return len(self.lengths)


def open_text(path, encoding="utf-8"):
    opened = gzip.open if str(path).endswith(".gz") else open
    return opened(path, "rt", encoding=encoding, newline="")


def read_catalogue(path):
    """Item ids, one a line: what stands before the first `::`, comma or tab."""
    with open_text(path, "iso-8859-1") as lines:
        ids = [line.split("::")[0].split(",")[0].split("\t")[0].strip() for line in lines if line.strip()]
    if len(set(ids)) != len(ids):
        raise SystemExit(f"{path}: {len(ids) - len(set(ids))} ids are there twice")
    return ids


def rows_of(catalogue):
    """{id: row} and the ids by row. Positive integers are rows themselves; other ids get rows in their order."""
    if all(i.isascii() and i.isdigit() and str(int(i)) == i and i != "0" for i in catalogue):
        rows = {i: int(i) for i in catalogue}
        if max(rows.values()) <= 2 * len(rows):
            items = [""] * max(rows.values())
            for i, row in rows.items():
                items[row - 1] = i
            return rows, items
    return {i: r + 1 for r, i in enumerate(catalogue)}, list(catalogue)


def read_interactions(path, catalogue_path=None):
    """Interactions of a file; without a catalogue, the candidates are the items that occur, in their order."""
    users, user_index, item_ids, times = {}, [], [], []
    with open_text(path) as lines:
        reader = csv.reader(lines)
        header = next(reader)
        missing = {"user", "item", "ts"} - set(header)
        if missing:
            raise SystemExit(f"{path}: no column {', '.join(sorted(missing))} among {', '.join(header)}")
        user_at, item_at, time_at = (header.index(name) for name in ("user", "item", "ts"))
        for fields in reader:
            user_index.append(users.setdefault(fields[user_at], len(users)))
            item_ids.append(fields[item_at])
            times.append(int(fields[time_at]))
    catalogue = read_catalogue(catalogue_path) if catalogue_path else list(dict.fromkeys(item_ids))
    rows, items = rows_of(catalogue)
    unknown = set(item_ids) - set(rows)
    if unknown:
        raise SystemExit(f"{path}: {len(unknown)} items are not in the catalogue, {sorted(unknown)[0]} for one")
    times = np.maximum(np.array(times, dtype=np.int64), 0)
    user_index = np.array(user_index)
    order = np.lexsort((times, user_index))
    return Interactions(
        users=list(users),
        items=items,
        candidates=np.array([rows[i] for i in catalogue]),
        rows=np.array([rows[i] for i in item_ids])[order],
        times=times[order],
        bounds=np.searchsorted(user_index[order], np.arange(len(users) + 1)),
    )


def windows_of(data, length, leave_out):
    """Every user's last length + 1 events but for the newest `leave_out`; users with less than two are left out."""
    ends = data.bounds[1:] - leave_out
    starts = np.maximum(data.bounds[:-1], ends - length - 1)
    users = np.flatnonzero(ends - starts >= 2)
    starts, ends = starts[users], ends[users]
    place = starts[:, None] + np.arange(length + 1)
    inside = place < ends[:, None]
    last = np.minimum(place, ends[:, None] - 1)
    return Windows(
        users=torch.from_numpy(users),
        rows=torch.from_numpy(np.where(inside, data.rows[last], 0)),
        times=torch.from_numpy(data.times[last]),
        lengths=torch.from_numpy(ends - starts),
    )


def write_json(path, value):
    """Compact JSON with a final newline."""
    Path(path).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
