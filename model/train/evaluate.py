"""AUC, NE and log loss of a model on the target rows of some days.

Every target is scored as a candidate at its own moment: all of the user's events before it, the newest that fit, are its
history. `python evaluate.py --data DIR --model DIR` does so for an exported model and prints the test metrics.
"""

import argparse
import json

import numpy as np
import torch

from batches import Sequences, batches_of, room_for_events, target_windows
from data import FIRST_TEST_DAY, LAST_TEST_DAY, TASKS, load
from encode import encode_context, encode_items

FLOORS = {  # logistic regression on smoothed user rate + item rate + tab + duration + hour, test days
    "click": {"auc": 0.7278, "ne": 0.8748, "logLoss": 0.6006},
    "long_view": {"auc": 0.7463, "ne": 0.8614, "logLoss": 0.5342},
    "like": {"auc": 0.8899, "ne": 0.7075, "logLoss": 0.0591},
}


def auc(scores, labels):
    """Mann-Whitney: the share of (positive, negative) pairs in the right order, ties at half."""
    values, at, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # mean rank, from 1, of each distinct value
    positives = int(labels.sum())
    negatives = len(labels) - positives
    return float((rank[at][labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def metrics(logits, labels):
    """{task: {auc, ne, logLoss, rows, baseRate}} of logits and labels (R, T).

    Log loss is softplus(x) - y·x in float64: no probability is formed, so nothing needs clipping.
    """
    logits = logits.astype(np.float64)
    result = {}
    for i, task in enumerate(TASKS):
        x, y = logits[:, i], labels[:, i]
        rate = float(y.mean())
        loss = float((np.logaddexp(0, x) - y * x).mean())
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        result[task] = {
            "auc": auc(x, y),
            "ne": loss / float(entropy),
            "logLoss": loss,
            "rows": len(y),
            "baseRate": rate,
        }
    return result


@torch.no_grad()
def predict(model, sequences, windows, first, is_target, events_per_batch=8192):
    """Float32 logits of the target events of these windows: (event numbers (R,), logits (R, T))."""
    model.eval()
    events, logits = [], []
    for rows in batches_of(windows, events_per_batch):
        user, index, valid = sequences.place(windows.take(rows))
        wanted = valid & is_target[index]
        wanted &= index >= torch.as_tensor(first[rows], device=index.device)[:, None]
        events.append(index[wanted].cpu().numpy())
        logits.append(model(*sequences.inputs(user, index))[wanted].float().cpu().numpy())
    return np.concatenate(events), np.concatenate(logits)


class Evaluator:
    """Metrics of the log rows of [first_day, last_day]; prepared once, called after every epoch."""

    def __init__(self, data, sequences, config, first_day, last_day):
        self.windows, self.first = target_windows(data, first_day, last_day, room_for_events(config))
        self.sequences, self.labels = sequences, data.labels()
        wanted = (data.day >= first_day) & (data.day <= last_day)
        self.is_target = torch.as_tensor(wanted, device=sequences.device)

    def __call__(self, model):
        events, logits = predict(model, self.sequences, self.windows, self.first, self.is_target)
        assert len(np.unique(events)) == len(events) == int(self.is_target.sum()), "every target exactly once"
        return metrics(logits, self.labels[events])


def exact_float32():
    """Full float32 matrix products: no TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def main():
    from export import load_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the KuaiRand-Pure files")
    parser.add_argument("--model", required=True, help="folder written by train.py")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    exact_float32()
    data = load(options.data)
    model, config, vocabularies = load_model(options.model)
    context, items = encode_context(data, config, vocabularies), encode_items(data, config, vocabularies)
    sequences = Sequences(data, context, items, options.device)
    evaluator = Evaluator(data, sequences, config, FIRST_TEST_DAY, LAST_TEST_DAY)
    print(json.dumps(evaluator(model.to(options.device)), indent=2))


if __name__ == "__main__":
    main()
