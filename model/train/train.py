"""Trains the demo model and writes its folder.

    python train.py --data DIR --out DIR

Two stages with the same recipe. `choose` trains on targets of 25 April to 2 May and reports 3 and 4 May after every
epoch; nothing else is ever looked at while choosing a recipe. `final` trains from the start on 25 April to 4 May, is
exported, and is then evaluated once on 5 to 8 May.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from batches import Sequences
from curves import draw_curves
from data import FIRST_TEST_DAY, LAST_TEST_DAY, LAST_TRAIN_DAY, first_users, load
from encode import encode_context, encode_items, make_config
from evaluate import FLOORS, Evaluator, exact_float32
from export import count_parameters, export_model
from fit import fit
from model import Hstu
from teachers import soft_labels

CHOOSE_LAST_DAY, VALIDATION_DAYS = 20220502, (20220503, 20220504)


def parse_options(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="folder of the KuaiRand-Pure files")
    add("--out", required=True, help="folder to write the model to")
    add("--stages", choices=("both", "choose", "final"), default="both")
    add("--seed", type=int, default=1)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="CPU threads")
    add("--limit-users", type=int, help="trial on the first users only")
    add("--progress-seconds", type=float, default=1.0, help="least time between two updates of the progress bar")
    # shape
    add("--width", type=int, default=96, help="D")
    add("--layers", type=int, default=3)
    add("--heads", type=int, default=4)
    add("--head-width", type=int, help="dqk and dv; default width / heads")
    add("--max-tokens", type=int, default=512, help="N: history limit and divisor")
    add("--positions", type=int, default=256)
    add("--head-hidden", type=int, default=96)
    add("--author-rows", type=int, default=1025)
    add("--min-count", type=int, default=10, help="exposures a video needs for a row of its own")
    # optimisation
    add("--epochs", type=int, default=6)
    add("--events-per-batch", type=int, default=8192, help="padded events of a batch")
    add("--lr", type=float, default=2e-3)
    add("--beta2", type=float, default=0.99)
    add("--clip", type=float, default=1.0, help="gradient norm")
    add("--average", type=float, default=0.995, help="decay of the moving average of the weights")
    add("--task-weights", type=float, nargs=3, default=(1.0, 1.0, 1.0), metavar=("CLICK", "LONG_VIEW", "LIKE"))
    add("--earlier-weight", type=float, default=1.0, help="loss weight of long_view and like on the earlier history")
    add("--sampling", choices=("once", "binomial"), default="once", help="users at rate 1/n: exactly, or drawn")
    add("--stochastic-length-alpha", type=float, help="cut long sequences at random to N^(alpha/2) tokens")
    # soft labels
    add("--teacher-folds", type=int, default=4, help="teachers, each trained without one part of the users; 0: none")
    add("--teacher-rounds", type=int, default=2, help="rounds of teachers with other seeds, averaged")
    add("--teacher-epochs", type=int, default=3)
    add("--teacher-weight", type=float, default=0.7, help="share of the teachers' probability in a label")
    # against overfitting
    add("--decay", type=float, default=1.0, help="weight decay of matrices and small tables")
    add("--id-decay", type=float, default=5.0, help="weight decay of the video and author tables")
    add("--id-lr-scale", type=float, default=1.0, help="learning rate of the video and author tables, relative")
    add("--id-dropout", type=float, default=0.2, help="rate at which video and author ids become unknown")
    add("--dropout", type=float, default=0.3)
    add("--embedding-dropout", type=float, default=0.2)
    add("--event-dropout", type=float, default=0.0, help="rate at which whole events are left out of a pass")
    add("--action-dropout", type=float, default=0.0, help="rate at which action tokens are blanked")
    add("--table-std", type=float, default=0.02)
    return parser.parse_args(arguments)


def new_model(config, options):
    """A model with the recipe's dropouts, seeded weights."""
    torch.manual_seed(options.seed)
    dropouts = options.dropout, options.embedding_dropout, options.action_dropout
    return Hstu(config, *dropouts, options.table_std).to(options.device)


def train_stage(stage, data, last_day, validation_days, options, log):
    """Trains up to `last_day` -> (averaged model, vocabularies, sequences, seconds)."""
    began = time.time()
    config, vocabularies = make_config(data, last_day, options)
    context, items = encode_context(data, config, vocabularies), encode_items(data, config, vocabularies)
    sequences = Sequences(data, context, items, options.device)
    labels = None
    if options.teacher_folds:
        labels = soft_labels(
            data, sequences, last_day, options, lambda o: (new_model(config, o), Hstu(config)), stage, log
        )
    model, averaged = new_model(config, options), Hstu(config).to(options.device)
    evaluator = Evaluator(data, sequences, config, *validation_days) if validation_days else None
    fit(model, averaged, data, sequences, last_day, options, stage, evaluator, log, labels=labels)
    return averaged, vocabularies, sequences, time.time() - began


def recipe(options):
    """The options that shape the result, for the record."""
    left_out = ("data", "out", "threads", "progress_seconds", "device", "limit_users")
    return {name: value for name, value in vars(options).items() if name not in left_out}


def hardware(device):
    """What the training ran on, in words."""
    if device.startswith("cuda"):
        return f"1 x {torch.cuda.get_device_name()}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def main():
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")  # TF32 products while training, where the device has them
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    data = load(options.data)
    if options.limit_users:
        data = first_users(data, options.limit_users)
    log_file = (out / "train-log.jsonl").open("w", encoding="utf-8")
    history = []

    def log(row):
        history.append(row)
        log_file.write(json.dumps(row) + "\n")
        log_file.flush()

    report = {"model": "kuairand-demo", "recipe": recipe(options), "hardware": hardware(options.device)}
    report["software"] = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    if options.stages != "final":
        *_, seconds = train_stage("choose", data, CHOOSE_LAST_DAY, VALIDATION_DAYS, options, log)
        report["validation"] = {"days": VALIDATION_DAYS, "tasks": history[-1]["validation"]}
        report["chooseSeconds"] = round(seconds, 1)
    if options.stages != "choose":
        model, vocabularies, sequences, seconds = train_stage("final", data, LAST_TRAIN_DAY, None, options, log)
        export_model(out, model.eval(), vocabularies, data)
        exact_float32()
        evaluator = Evaluator(data, sequences, model.config, FIRST_TEST_DAY, LAST_TEST_DAY)
        tasks = evaluator(model)
        for task, values in tasks.items():
            values["floor"] = FLOORS[task]
        report |= {"parameters": count_parameters(model), "epochs": options.epochs, "seed": options.seed}
        report |= {"trainSeconds": round(seconds, 1), "days": [FIRST_TEST_DAY, LAST_TEST_DAY], "tasks": tasks}
        print(json.dumps(tasks, indent=2))
    report["wallSeconds"] = round(time.time() - began, 1)
    log_file.close()
    (out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw_curves(history, report.get("tasks"), out / "learning-curves.png")


if __name__ == "__main__":
    main()
