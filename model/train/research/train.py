"""Trains the next-item model on a CSV of interactions and writes its folder.

    python train.py --data FILE [--items FILE] --out DIR

The defaults are the authors' published recipe for MovieLens-1M: the last item of every user is held out, the one loss is a
sampled softmax over uniformly drawn items of the catalogue. What is written is a moving average of the weights.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from checkpoint import complete, write_model
from data import read_interactions, windows_of
from evaluate import metrics, target_ranks
from model import Hstu

# Beyond so many items, drawn rows are gathered before the product instead of the scores after it.
FULL_PRODUCT = 50_000


def parse_options(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="CSV with the columns user, item, ts")
    add("--items", help="catalogue, an id first on each line; the items that occur, where absent")
    add("--out", required=True, help="folder to write the model to")
    add("--name", help="model name in config.json")
    add("--seed", type=int, default=42)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--epochs", type=int, default=101)
    add("--evaluate-every", type=int, default=20, help="epochs between two evaluations, each of which writes the folder")
    add("--max-steps", type=int, help="trial: stop after so many batches")
    # shape
    add("--width", type=int, default=50, help="D")
    add("--blocks", type=int, default=2)
    add("--heads", type=int, default=1)
    add("--head-width", type=int, help="dqk and dv; default width / heads")
    add("--max-length", type=int, default=200, help="events of a history")
    add("--max-output", type=int, default=11, help="what the divisor and the position table have beyond max-length")
    # optimisation
    add("--batch", type=int, default=128)
    add("--lr", type=float, default=1e-3)
    add("--betas", type=float, nargs=2, default=(0.9, 0.98))
    add("--weight-decay", type=float, default=0.0)
    add("--dropout", type=float, default=0.2)
    add("--negatives", type=int, default=128)
    add("--temperature", type=float, default=0.05)
    add("--average", type=float, default=0.999, help="decay of the moving average of the weights; 0: the last weights")
    return parser.parse_args(arguments)


def config_of(options, data):
    """config.json as `peregrine export` takes it."""
    head_width = options.head_width or options.width // options.heads
    config = {"variant": "research", "name": options.name} if options.name else {"variant": "research"}
    config |= {"dModel": options.width, "heads": options.heads, "dqk": head_width, "dv": head_width}
    config |= {"layers": options.blocks, "items": len(data.items)}
    config |= {"maxSequenceLen": options.max_length, "maxOutputLen": options.max_output}
    config |= {"candidates": "candidates.json"}
    if any(id != str(i + 1) for i, id in enumerate(data.items) if id):
        config["itemEncoding"] = {"kind": "vocabulary", "file": "vocabulary.json"}
    return config


def scores_of_drawn(users, table, drawn):
    """users (M, D) · table[drawn], drawn (M, K) -> (M, K)."""
    if len(table) <= FULL_PRODUCT:
        return (users @ table.T).gather(1, drawn)
    return torch.einsum("md,mkd->mk", users, F.embedding(drawn, table))


def loss_of(model, windows, candidates, options):
    """Mean over events of -log softmax of the true next item among itself and drawn items that are not it.

    candidates (C,) are the item rows to draw from.
    """
    rows, after = windows.rows[:, :-1], windows.rows[:, 1:]
    known = after.flatten().nonzero()[:, 0]
    users = model(rows, windows.times).flatten(0, 1)[known]  # (M, D)
    positive = after.flatten()[known]
    table = model.item_vectors()
    drawn = candidates[torch.randint(len(candidates), (len(known), options.negatives), device=known.device)]
    logits = scores_of_drawn(users, table, drawn) / options.temperature
    logits = logits.masked_fill(drawn == positive[:, None], float("-inf"))
    own = (users * F.embedding(positive, table)).sum(1, keepdim=True) / options.temperature
    return (torch.cat([own, logits], dim=1).logsumexp(1) - own[:, 0]).mean()


def main():
    options = parse_options()
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")  # TF32 products while training, where the device has them
    data = read_interactions(options.data, options.items)
    config = config_of(options, data)
    model = Hstu(complete(config), options.dropout).to(options.device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.average))
    optimizer = torch.optim.AdamW(
        model.parameters(), options.lr, tuple(options.betas), weight_decay=options.weight_decay, fused=True
    )
    training = windows_of(data, options.max_length, leave_out=1).to(options.device)
    held_out = windows_of(data, options.max_length, leave_out=0).to(options.device)
    candidates = torch.from_numpy(data.candidates).to(options.device)
    order_of = torch.Generator().manual_seed(options.seed)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    log = (out / "train-log.jsonl").open("w", encoding="utf-8")
    began, step = time.time(), 0

    def report(row):
        log.write(json.dumps(row) + "\n")
        log.flush()
        print(json.dumps(row), flush=True)

    for epoch in range(1, options.epochs + 1):
        model.train()
        losses = []
        for batch in torch.randperm(len(training), generator=order_of).split(options.batch):
            loss = loss_of(model, training.take(batch.to(options.device)), candidates, options)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            losses.append(loss.detach())
            step += 1
            if step == options.max_steps:
                break
        is_last = epoch == options.epochs or step == options.max_steps
        row = {"epoch": epoch, "loss": float(torch.stack(losses).mean()), "seconds": round(time.time() - began, 1)}
        if is_last or epoch % options.evaluate_every == 0:
            kinds = {"average": average.module, "last": model}
            row |= {kind: metrics(target_ranks(m, held_out, candidates)) for kind, m in kinds.items()}
            write_model(out, average.module, config, data)
        report(row)
        if is_last:
            break


if __name__ == "__main__":
    main()
