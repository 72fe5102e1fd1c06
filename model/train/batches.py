"""Training passes and padded batches of them.

**Generative training.** Training on impressions would run a user's sequence once for each of the user's n targets. One
causal pass emits all n, so the paper samples users at rate 1/n: each of the n impressions starts a pass with probability
1/n, about one pass per user and epoch, and every impression still counts n · 1/n = 1 in expectation. `once` takes the
rate literally without its variance (exactly one pass per user and epoch), `binomial` draws it (Binomial(n, 1/n) passes).
The loss is a sum over targets divided by a constant, the targets an average batch holds, so that no impression weighs
more because its batch has few.

**Stochastic length** (option). A pass of n tokens longer than N^(alpha/2) keeps, with probability 1 - N^alpha / n², only
its newest N^(alpha/2) tokens, whole events; N is the config's maxTokens.

Letters in the shapes: B sequences, E events of the longest, M events of all users, F item features, C context tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data import EARLIER


@dataclass(frozen=True)
class Windows:
    """Stretches of events to run: window w is events [start, end) of one user."""

    user: np.ndarray  # (W,) int64
    start: np.ndarray  # (W,) int64 into the events of all users
    end: np.ndarray  # (W,) int64

    def __len__(self):
        return len(self.user)

    def take(self, rows):
        return Windows(self.user[rows], self.start[rows], self.end[rows])


class Sequences:
    """Encoded events of all users on the device, from which batches are gathered."""

    def __init__(self, data, context, items, device):
        self.context = torch.as_tensor(context, device=device)  # (U, C)
        self.items = torch.as_tensor(items, device=device)  # (M, F)
        self.actions = torch.as_tensor(data.actions.astype(np.int64), device=device)  # (M,)
        self.t = torch.as_tensor(data.t, device=device)  # (M,)
        self.labels = torch.as_tensor(data.labels(), device=device)  # (M, T), NaN where unknown
        self.device = device

    def place(self, windows):
        """Padded places of the windows' events: user (B,), index and valid (B, E).

        Padding repeats the window's last event; `valid` is false there.
        """
        longest = int((windows.end - windows.start).max())
        place = windows.start[:, None] + np.arange(longest)
        index = np.minimum(place, windows.end[:, None] - 1)
        return tuple(torch.as_tensor(a, device=self.device) for a in (windows.user, index, place == index))

    def inputs(self, user, index):
        """The model's inputs: context (B, C), items (B, E, F), actions (B, E), t (B, E)."""
        return self.context[user], self.items[index], self.actions[index], self.t[index]


def room_for_events(config):
    """Events that fit a history: C + 2E <= maxTokens."""
    return (config["maxTokens"] - len(config["context"])) // 2


def target_weights(data, last_day, earlier_weight):
    """Weight of every event's loss per task, (M, 3) float32: 1 for log rows up to `last_day`.

    Earlier events weigh `earlier_weight` on long_view and like and nothing on click: it is known there for long views
    only, and learning from those alone would teach that everything is clicked.
    """
    weights = np.zeros((len(data.day), 3), dtype=np.float32)
    weights[(data.day > EARLIER) & (data.day <= last_day)] = 1
    weights[data.day == EARLIER, 1:] = earlier_weight
    return weights


def training_windows(data, last_day, weights, room):
    """One window per user with a target: the newest `room` events up to the last one of `last_day`."""
    known = np.concatenate([[0], np.cumsum(data.day <= last_day)])
    targets = np.concatenate([[0], np.cumsum(weights.any(axis=1))])
    start, end = data.offsets[:-1], data.offsets[1:]
    stop = start + known[end] - known[start]  # days only grow within a user
    first = np.maximum(start, stop - room)
    users = np.flatnonzero(targets[stop] - targets[first] > 0)
    return Windows(users, first[users], stop[users])


def target_windows(data, first_day, last_day, room):
    """Windows that score the targets of these days, and which events each window scores: (Windows, first (W,)).

    A user's targets with at most `room` events before them share one pass, since nothing is cut off for them. Each later
    target has a window of its own: the newest `room` events and then itself. Window w scores the targets in
    [first[w], end[w]).
    """
    user, start, end, first = [], [], [], []
    is_target = (data.day >= first_day) & (data.day <= last_day)
    for u in range(len(data.users)):
        begin, stop = int(data.offsets[u]), int(data.offsets[u + 1])
        targets = begin + np.flatnonzero(is_target[begin:stop])
        whole = targets[targets - begin <= room]
        if len(whole):
            user.append(u), start.append(begin), end.append(int(whole[-1]) + 1), first.append(int(whole[0]))
        for target in targets[targets - begin > room].tolist():
            user.append(u), start.append(target - room), end.append(target + 1), first.append(target)
    return Windows(np.array(user), np.array(start), np.array(end)), np.array(first)


def batches_of(windows, events_per_batch, rng=None):
    """Cuts windows into batches of like lengths with at most `events_per_batch` padded events: lists of row numbers.

    With a random generator, windows are sorted by length only within random groups, and batches come in random order.
    """
    length = windows.end - windows.start
    order = np.arange(len(windows)) if rng is None else rng.permutation(len(windows))
    group = len(order) if rng is None else 4096
    result = []
    for at in range(0, len(order), group):
        part = order[at : at + group]
        part = part[np.argsort(length[part], kind="stable")]
        first = 0
        for i in range(1, len(part) + 1):
            if i == len(part) or length[part[i]] * (i + 1 - first) > events_per_batch:
                result.append(part[first:i])
                first = i
    if rng is not None:
        rng.shuffle(result)
    return result


def sample_passes(windows, targets, sampling, rng):
    """The windows of one epoch; `targets` (W,) counts each window's targets."""
    if sampling == "once":
        return windows
    return windows.take(np.repeat(np.arange(len(windows)), rng.binomial(targets, 1 / targets)))


def stochastic_length(windows, config, alpha, rng):
    """Cuts long windows at random to their newest N^(alpha/2) tokens."""
    divisor, context = config["maxTokens"], len(config["context"])
    tokens = context + 2 * (windows.end - windows.start)
    kept = divisor ** (alpha / 2)
    cut = rng.random(len(windows)) < 1 - (kept / tokens) ** 2  # never where tokens <= kept
    events = max(1, int(kept - context) // 2)
    start = np.where(cut, np.maximum(windows.start, windows.end - events), windows.start)
    return Windows(windows.user, start, windows.end)
