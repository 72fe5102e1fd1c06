"""Raw KuaiRand-Pure files -> one time-ordered event sequence per user.

A user's events are the earlier history (9 to 24 April: item, like and long_view known, times interpolated, click known
only where long_view = 1) followed by the rows of the standard log (25 April to 8 May). Nothing here knows about table
rows, tokens or PyTorch: see encode.py and batches.py.

Letters in the shapes: U users, M events of all users together.
"""

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ACTIONS = ("click", "long_view", "like", "click_unknown")  # bit 0 first
CLICK, LONG_VIEW, LIKE, CLICK_UNKNOWN = (1 << bit for bit in range(len(ACTIONS)))
TASKS = ACTIONS[:3]

HISTORY_START_MS = 1649433600000  # 2022-04-09 00:00 +08:00
FIRST_LOG_DAY, LAST_TRAIN_DAY = 20220425, 20220504
FIRST_TEST_DAY, LAST_TEST_DAY = 20220505, 20220508
EARLIER = 0  # `day` of an event of the earlier history


@dataclass(frozen=True)
class Data:
    """Events of all users, user after user, each user's oldest first: user u owns [offsets[u], offsets[u+1])."""

    users: list  # (U) user ids, numeric order
    user_features: list  # (U) {column: text} of the user table
    videos: dict  # video id -> (author text | None, tag text | None, duration in ms | None)
    video_ids: list  # the keys of `videos`; `video` below indexes it
    offsets: np.ndarray  # (U+1,) int64
    t: np.ndarray  # (M,) int64 whole seconds
    video: np.ndarray  # (M,) int32
    tab: np.ndarray  # (M,) int32, -1 where missing
    actions: np.ndarray  # (M,) int32 bit mask over ACTIONS
    day: np.ndarray  # (M,) int32 YYYYMMDD, EARLIER before the log begins

    def labels(self):
        """Targets (M, 3) float32 in the order of TASKS. NaN: the click of an earlier event, known only in part."""
        bits = (self.actions[:, None] >> np.arange(3)) & 1
        labels = bits.astype(np.float32)
        labels[self.day == EARLIER, 0] = np.nan
        return labels


def read_lines(path):
    """(column names, text lines) of a gzipped csv file whose cells hold no quotes."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    return lines[0].split(","), lines[1:]


def read_columns(names, lines, wanted):
    """The wanted columns as int64 arrays."""
    at = [names.index(name) for name in wanted]
    cells = [line.split(",") for line in lines]
    return [np.array([int(row[i]) for row in cells], dtype=np.int64) for i in at]


def read_earlier(folder):
    """Earlier events in file order: user, pos, ms (float64), video, actions; times interpolated up to the last one."""
    names, lines = read_lines(folder / "history_meta.csv.gz")
    meta_user, length, last = read_columns(names, lines, ("user_id", "history_len", "last_time_ms"))
    row_of_user = {user: row for row, user in enumerate(meta_user.tolist())}
    names, lines = read_lines(folder / "history_0409_0424_last50.csv.gz")
    user, pos, video, like, long_view = read_columns(
        names, lines, ("user_id", "pos", "video_id", "is_like", "long_view")
    )
    row = np.array([row_of_user[u] for u in user.tolist()])
    span = (last[row] - HISTORY_START_MS).astype(np.float64)
    ms = HISTORY_START_MS + span * (pos + 1) / length[row]
    actions = np.where(long_view == 1, CLICK | LONG_VIEW, CLICK_UNKNOWN) | np.where(like == 1, LIKE, 0)
    return user, pos, ms, video, actions


def read_log(folder):
    """Log rows without exact duplicates, in file order: user, ms, video, tab, actions, date."""
    names, lines = read_lines(folder / "log_standard_0425_0508.csv.gz")
    lines = list(dict.fromkeys(lines))
    wanted = ("user_id", "time_ms", "video_id", "tab", "date", "is_click", "long_view", "is_like")
    user, ms, video, tab, date, click, long_view, like = read_columns(names, lines, wanted)
    actions = CLICK * (click == 1) + LONG_VIEW * (long_view == 1) + LIKE * (like == 1)
    return user, ms, video, tab, actions, date


def read_videos(folder):
    """Video id -> (author, tag, duration in ms), None where the cell is empty."""
    names, lines = read_lines_quoted(folder / "video_features_basic_pure.csv.gz")
    at = {name: i for i, name in enumerate(names)}

    def number(text):
        return int(float(text)) if float(text).is_integer() else float(text)

    return {
        row[at["video_id"]]: (
            row[at["author_id"]] or None,
            row[at["tag"]] or None,
            number(row[at["video_duration"]]) if row[at["video_duration"]] else None,
        )
        for row in lines
    }


def read_lines_quoted(path):
    """(column names, rows of cells) of a gzipped csv file with quoted cells."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], rows[1:]


def load(folder):
    """All files of the data folder -> Data."""
    folder = Path(folder)
    videos = read_videos(folder)
    video_ids = list(videos)
    index_of_video = {int(v): i for i, v in enumerate(video_ids)}

    user_e, pos, ms_e, video_e, actions_e = read_earlier(folder)
    user_l, ms_l, video_l, tab_l, actions_l, date_l = read_log(folder)
    user = np.concatenate([user_e, user_l])
    in_log = np.concatenate([np.zeros(len(user_e), np.int64), np.ones(len(user_l), np.int64)])
    key = np.concatenate([pos, ms_l])  # order within a part; the sort is stable, so ties keep the file's order
    order = np.lexsort((key, in_log, user))

    def merge(earlier, log, dtype):
        return np.concatenate([earlier, log])[order].astype(dtype)

    user = user[order]
    ids, starts = np.unique(user, return_index=True)
    names, rows = read_lines_quoted(folder / "user_features_pure.csv.gz")
    features = {int(row[0]): dict(zip(names, row, strict=True)) for row in rows}
    video = np.concatenate([video_e, video_l])[order]
    return Data(
        users=[str(u) for u in ids.tolist()],
        user_features=[features.get(u, {}) for u in ids.tolist()],
        videos=videos,
        video_ids=video_ids,
        offsets=np.append(starts, len(user)).astype(np.int64),
        t=merge(np.floor(ms_e / 1000), ms_l // 1000, np.int64),
        video=np.array([index_of_video[v] for v in video.tolist()], dtype=np.int32),
        tab=merge(np.full(len(user_e), -1), tab_l, np.int32),
        actions=merge(actions_e, actions_l, np.int32),
        day=merge(np.full(len(user_e), EARLIER), date_l, np.int32),
    )


def first_users(data, count):
    """The same data with the first `count` users only, for trials."""
    end = data.offsets[count]
    return Data(
        data.users[:count],
        data.user_features[:count],
        data.videos,
        data.video_ids,
        data.offsets[: count + 1],
        *(a[:end] for a in (data.t, data.video, data.tab, data.actions, data.day)),
    )
