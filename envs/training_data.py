"""The images that a compressed network is fine-tuned on, and those it is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from prunegym.envs.tasks import Task
from prunegym.pruning.calibration.synthesis import answered
from prunegym.pruning.data import Images, ImageSplits, joined


@dataclass(frozen=True)
class TrainingData:
    """The images that a network is trained on, and those that it is evaluated on."""

    images: Images
    validation: Images  # a per-input policy keeps its mean cost on these
    test: Images
    dense: nn.Module | None  # the network to follow; None where its weights are unknown

    @classmethod
    def from_splits(
        cls, splits: ImageSplits, *, validate: bool = False, dense: nn.Module | None = None
    ) -> TrainingData:
        """Return all images but the test images and, with `validate`, the validation images."""
        if validate:
            images = joined(splits.train, splits.calibration, splits.reward)
        else:
            images = splits.all_but_test()
        return cls(images, splits.validation, splits.test, dense)

    @classmethod
    def from_task(cls, task: Task, *, validate: bool = False) -> TrainingData:
        """Return a task's images; without data, synthetic ones with the dense network's answers as labels.

        With `validate` the validation images are left out.
        """
        splits = task.splits
        if isinstance(splits, ImageSplits):
            return cls.from_splits(splits, validate=validate, dense=task.model)
        calibration = answered(task.model, torch.cat(task.calibration.batches))
        images = joined(calibration, splits.reward, *([] if validate else [splits.validation]))
        return cls(images, splits.validation, splits.test, task.model)
