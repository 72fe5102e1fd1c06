"""Soft labels from teachers that never saw the user they speak about.

A click is one draw from a probability, and a model that learns from single draws soon learns the draws. So the users are
cut into folds, a teacher of the same recipe is trained without each fold, and gives the probabilities of that fold's
targets. The student learns from a mixture of label and probability.

Letters in the shapes: U users, M events, T tasks.
"""

import argparse

import numpy as np
import torch

from batches import room_for_events, target_windows
from data import EARLIER
from evaluate import predict
from fit import fit


def fold_of_users(count, folds, seed):
    """Fold of every user, (U,), of equal sizes."""
    return np.random.default_rng(seed).permutation(np.arange(count) % folds)


def teacher_options(options, number):
    """The recipe of one teacher: the student's with its own seed and epochs."""
    seed = options.seed * 1000 + number
    return argparse.Namespace(**vars(options) | {"seed": seed, "epochs": options.teacher_epochs})


def held_out_probabilities(data, sequences, last_day, model, held_out, config):
    """Probabilities of the events up to `last_day` of the users in `held_out` (U,): (event numbers (R,), (R, T))."""
    windows, first = target_windows(data, EARLIER, last_day, room_for_events(config))
    chosen = np.flatnonzero(held_out[windows.user])
    is_target = torch.as_tensor(data.day <= last_day, device=sequences.device)
    events, logits = predict(model, sequences, windows.take(chosen), first[chosen], is_target)
    return events, 1 / (1 + np.exp(-logits.astype(np.float64)))


def mix(labels, probabilities, weight):
    """(1 - weight) labels + weight probabilities, (M, T); unknown labels stay unknown."""
    return (1 - weight) * labels + weight * probabilities


def soft_labels(data, sequences, last_day, options, new_models, stage, log):
    """Labels of all events, (M, T) on the device; `new_models(options)` gives a model and one for its average."""
    sums = np.zeros((len(data.day), 3))
    for round_number in range(options.teacher_rounds):
        fold = fold_of_users(len(data.users), options.teacher_folds, options.seed + round_number)
        for k in range(options.teacher_folds):
            own = teacher_options(options, round_number * options.teacher_folds + k)
            model, averaged = new_models(own)
            averaged = averaged.to(sequences.device)
            name = f"{stage}, teacher {k + 1}"
            fit(model, averaged, data, sequences, last_day, own, name, log=log, users=fold != k)
            events, values = held_out_probabilities(data, sequences, last_day, averaged, fold == k, model.config)
            sums[events] += values
    known = torch.as_tensor(sums / options.teacher_rounds, dtype=torch.float32, device=sequences.device)
    return mix(sequences.labels, known, options.teacher_weight)
