"""What a compressed network learns from and is judged on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import nn

from prunegym.envs import Budget, count_classes, trains_itself
from prunegym.pruning.calibration.synthesis import answered
from prunegym.pruning.data import Images, ImageSplits, check_labels, joined
from prunegym.pruning.storage.compressed import LoadedNetwork
from prunegym.scripts import options

LABELS, DISTILLATION = "labels", "distillation"


@dataclass(frozen=True)
class Material:
    """What a network learns from and is judged on."""

    images: Images
    validation: Images  # on which what decides for each input keeps its mean cost
    test: Images
    dense: nn.Module | None  # None where its weights are unknown


def material_of(args: argparse.Namespace, loaded: LoadedNetwork) -> Material:
    """Load or make all images; to learn from are all but the test images and, with --validate, validation's.

    Raises:
        PruningError: images or weights are missing, damaged, or do not fit the network.
    """
    known = args.weights is not None or trains_itself(loaded.network.name, args.data)
    if args.learn == LABELS and not known:
        splits = options.splits_of(args, loaded.network)
        check_labels(splits, count_classes(loaded.model, loaded.network))
        return _of_splits(args, splits, None)
    task = options.task_of(args, Budget({"macs": 1.0}))
    if isinstance(task.splits, ImageSplits):
        return _of_splits(args, task.splits, task.model)
    made = answered(task.model, torch.cat(task.calibration.batches))
    made = joined(made, task.splits.reward, *([] if args.validate else [task.splits.validation]))
    return Material(made, task.splits.validation, task.splits.test, task.model)


def _of_splits(args: argparse.Namespace, splits: ImageSplits, dense: nn.Module | None) -> Material:
    if args.validate:
        images = joined(splits.train, splits.calibration, splits.reward)
    else:
        images = splits.all_but_test()
    return Material(images, splits.validation, splits.test, dense)
