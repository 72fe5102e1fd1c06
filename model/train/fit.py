"""The optimisation loop: one model, one stretch of days.

AdamW with a linear warm-up and a cosine to zero; the weights that are evaluated and exported are a moving average.
Video and author ids are replaced at random by row 0 ("unknown"), which trains that row and makes the model lean on what
it knows besides the id. Runs on a GPU differ in the last digits from one another even with the same seed, because some
gradients are added up in no fixed order; on a CPU they don't.
"""

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from batches import batches_of, room_for_events, sample_passes, stochastic_length, target_weights, training_windows

ID_TABLES = ("item.video_id.weight", "item.author.weight")


def parameter_groups(model, options):
    """Decay by kind: id tables, then matrices and other tables; vectors have none."""
    groups = {"ids": [], "matrices": [], "vectors": []}
    for name, parameter in model.named_parameters():
        kind = "ids" if name in ID_TABLES else "matrices" if parameter.ndim == 2 else "vectors"
        groups[kind].append(parameter)
    return [
        {"params": groups["ids"], "weight_decay": options.id_decay, "scale": options.id_lr_scale},
        {"params": groups["matrices"], "weight_decay": options.decay, "scale": 1.0},
        {"params": groups["vectors"], "weight_decay": 0.0, "scale": 1.0},
    ]


def learning_rate(step, steps, options):
    """Linear over the first 5 %, then half a cosine down to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return options.lr * (step + 1) / warm
    return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def drop_ids(items, rate):
    """Replaces video and author rows, each alone, by row 0 with this probability; items (B, E, F) is not modified."""
    kept = torch.rand(*items.shape[:-1], 2, device=items.device) >= rate
    return torch.cat([items[..., :2] * kept, items[..., 2:]], dim=-1)


def thin_events(index, valid, rate):
    """Leaves each event of a batch out with this probability: a shorter history of the same user, a new one every epoch.

    index and valid (B, E) -> the same shapes, the kept events moved to the front in their order. Targets that are left
    out are missed in this pass only.
    """
    kept = valid & (torch.rand(valid.shape, device=valid.device) >= rate)
    order = torch.argsort((~kept).byte(), dim=1, stable=True)
    return index.gather(1, order), kept.gather(1, order)


def losses(logits, labels, weights):
    """Weighted binary cross-entropy summed per task: (B, E, T) -> (T,). Unknown labels (NaN) must weigh nothing."""
    each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (each * weights).sum(dim=(0, 1))


@torch.no_grad()
def start_at_base_rates(model, labels, weights):
    """Sets the head's last bias to the log odds of each task among the targets; labels and weights (M, T)."""
    rate = (labels.nan_to_num() * weights).sum(0) / weights.sum(0)
    model.head.fc2.bias.copy_(torch.logit(rate))


class MovingAverage:
    """Exponential average of a model's weights, with a decay that grows from 0 so that the start is forgotten."""

    def __init__(self, model, decay):
        self.decay, self.steps = decay, 0
        self.average = [p.detach().clone() for p in model.parameters()]

    def update(self, model):
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in model.parameters()], weight)

    def copy_to(self, model):
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), self.average, strict=True):
                parameter.copy_(average)


def fit(model, averaged, data, sequences, last_day, options, stage, evaluator=None, log=None, users=None, labels=None):
    """Trains `model` on targets up to `last_day`; puts the averaged weights into `averaged` after every epoch.

    `log` is given one dict per epoch, with `evaluator`'s metrics. `users` (U,) bool trains on some users only, `labels`
    (M, T) replaces the labels. Returns the seconds it took.
    """
    config, began = model.config, time.time()
    labels = sequences.labels if labels is None else labels
    rng = np.random.default_rng(options.seed)
    weights = target_weights(data, last_day, options.earlier_weight)
    windows = training_windows(data, last_day, weights, room_for_events(config))
    if users is not None:
        windows = windows.take(np.flatnonzero(users[windows.user]))
    counted = np.concatenate([[0], np.cumsum(weights.any(axis=1))])
    targets = counted[windows.end] - counted[windows.start]
    weights = torch.as_tensor(weights, device=sequences.device)
    start_at_base_rates(model, labels, weights)
    task_weights = torch.tensor(options.task_weights, device=sequences.device)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, options), lr=options.lr, betas=(0.9, options.beta2), fused=sequences.device != "cpu"
    )
    average = MovingAverage(model, options.average)

    def epoch_batches():
        passes = sample_passes(windows, targets, options.sampling, rng)
        if options.stochastic_length_alpha:
            passes = stochastic_length(passes, config, options.stochastic_length_alpha, rng)
        return passes, batches_of(passes, options.events_per_batch, rng)

    plan = [epoch_batches() for _ in range(options.epochs)]
    steps = sum(len(batches) for _, batches in plan)
    per_batch = float(targets.sum()) / (steps / options.epochs)
    bar = tqdm(total=steps, desc=stage, unit="step", mininterval=options.progress_seconds)
    step = 0
    for epoch, (passes, batches) in enumerate(plan, 1):
        model.train()
        sums, counts = torch.zeros(3, device=sequences.device), torch.zeros(3, device=sequences.device)
        for rows in batches:
            rate = learning_rate(step, steps, options)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            user, index, valid = sequences.place(passes.take(rows))
            if options.event_dropout:
                index, valid = thin_events(index, valid, options.event_dropout)
            context, items, actions, t = sequences.inputs(user, index)
            logits = model(context, drop_ids(items, options.id_dropout), actions, t)
            weight = weights[index] * valid[..., None]
            loss = losses(logits, labels[index], weight)
            optimizer.zero_grad(set_to_none=True)
            ((loss * task_weights).sum() / per_batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            average.update(model)
            sums += loss.detach()
            counts += weight.sum(dim=(0, 1))
            step += 1
            bar.update()
        average.copy_to(averaged)
        row = {"stage": stage, "epoch": epoch, "step": step, "seconds": round(time.time() - began, 1)}
        row["trainLoss"] = [round(x, 5) for x in (sums / counts).tolist()]
        if evaluator is not None:
            row["validation"] = evaluator(averaged)
            auc_text = " ".join(f"{m['auc']:.4f}" for m in row["validation"].values())
            bar.set_postfix_str(f"epoch {epoch}, validation AUC {auc_text}")
        if log is not None:
            log(row)
    bar.close()
    return time.time() - began
