"""Learning curves of a training run as a picture: `python curves.py --model DIR` redraws them from the folder's log."""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 -- the backend must be set before

from data import TASKS  # noqa: E402

STAGES = {"choose": ("--", "#d95f02"), "final": ("-", "#1f77b4")}


def draw_curves(history, test, path):
    """A column per task; rows: training loss, AUC, NE, over epochs.

    `history` is the log, one dict per epoch; `test` is {task: metrics} or None. Losses are those of the soft labels the
    student learns from, earlier history included, so they are to be compared with one another only.
    """
    figure, axes = plt.subplots(3, len(TASKS), figsize=(12, 8.5), layout="constrained", sharex=True)
    stages = {name: [row for row in history if row["stage"] == name] for name in STAGES}
    last = max(row["epoch"] for rows in stages.values() for row in rows)
    for i, task in enumerate(TASKS):
        loss, auc, ne = axes[:, i]
        for name, rows in stages.items():
            style, colour = STAGES[name]
            epochs = [row["epoch"] for row in rows]
            loss.plot(epochs, [row["trainLoss"][i] for row in rows], style, marker=".", color=colour, label=name)
        for axis, metric in ((auc, "auc"), (ne, "ne")):
            rows = [row for row in stages["choose"] if "validation" in row]
            values = [row["validation"][task][metric] for row in rows]
            style, colour = STAGES["choose"]
            axis.plot(
                [row["epoch"] for row in rows], values, style, marker=".", color=colour, label="validation, 3-4 May"
            )
            if test:
                value, floor = test[task][metric], test[task]["floor"][metric]
                axis.plot(last, value, "o", color=STAGES["final"][1], label=f"test, 5-8 May: {value:.4f}")
                axis.axhline(floor, color="#777777", linestyle=":", label=f"test floor: {floor:.4f}")
        loss.set_title(f"{task}: training loss")
        auc.set_title("AUC")
        ne.set_title("normalised entropy (lower is better)")
        ne.set_xlabel("epoch")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.margins(y=0.15)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="folder written by train.py")
    folder = parser.parse_args().model
    history = [json.loads(line) for line in (folder / "train-log.jsonl").read_text().splitlines()]
    draw_curves(history, json.loads((folder / "metrics.json").read_text()).get("tasks"), folder / "learning-curves.png")


if __name__ == "__main__":
    main()
