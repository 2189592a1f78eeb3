"""Disjoint splits of images for learning, for choosing and for reporting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from prunegym.pruning.data.images import Images, ImageSource, joined
from prunegym.pruning.errors import DataError

_HELD_OUT = {"calibration": 512, "reward": 512, "validation": 1000}  # images
_DRAWN_FROM = 4  # times as many images as `reward` has
_DRAWN_BYTES = 2**29  # of those in memory, at most, unless `reward` alone takes more
_MAX_HELD_OUT_SHARE = 0.75  # of the training images; beyond it the sizes above shrink


@dataclass(frozen=True, eq=False)
class ImageSplits:
    """Disjoint sets of images; all but `test` are drawn from the training images of the data set."""

    train: Images
    calibration: Images  # for criteria and compensation
    reward: Images  # for the rewards of policies
    validation: Images  # chooses between candidates
    test: Images  # reported, and never used for any choice
    classes: int | None = None  # that the data set names; None where labels are bare numbers

    @cached_property
    def to_draw_from(self) -> Images:
        """The reward images and, held in memory with them, more of those to train on.

        A plan may be scored on images drawn for it alone: a plan that suits a few hundred fixed images need
        not suit others.
        """
        reward = Images(self.reward.images, self.reward.labels)
        maximum = min(_DRAWN_FROM * len(reward), _DRAWN_BYTES // reward.images[0].nbytes)
        more = torch.arange(min(len(self.train), max(0, maximum - len(reward))))
        if len(more) == 0:
            return reward
        return joined(reward, Images(self.train.take(more), self.train.labels[more]))

    def all_but_test(self) -> Images:
        """Return all images but the test images, to train on once every choice is made."""
        return joined(self.train, self.calibration, self.reward, self.validation)


def draw_splits(
    part: Callable[[Tensor], ImageSource],
    labels: Tensor,
    test: Images,
    *,
    seed: int,
    place: str,
    classes: int | None = None,
) -> ImageSplits:
    """Draw calibration, reward and validation images from training images; once read, they stay in memory.

    Args:
        part: returns the training images of the given numbers.
        labels: the labels of all training images, [N].
        test: the test images.
        seed: the seed of the draw.
        place: the place that the images come from, for errors.
        classes: the number of classes that the data set names.

    Raises:
        DataError: there are too few.
    """
    sizes = _held_out(len(labels), place)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    *drawn, rest = order.split([*sizes.values(), len(order) - sum(sizes.values())])
    held = {name: Images(part(at), labels[at], held=True) for name, at in zip(sizes, drawn, strict=True)}
    return ImageSplits(train=Images(part(rest), labels[rest]), **held, test=test, classes=classes)


def check_labels(splits: ImageSplits, classes: int) -> None:
    """Check the labels of every split against the network's number of outputs; no image is read.

    Raises:
        DataError: the data set names another number of classes, or a label is not in [0, classes).
    """
    if splits.classes not in (None, classes):
        raise DataError(
            f"the images are of {splits.classes} classes, but the network has {classes} outputs: "
            "labels would mean something else; give images of its classes, or a network for these"
        )
    for name, images in vars(splits).items():
        if not isinstance(images, Images):
            continue
        wrong = images.labels[(images.labels < 0) | (images.labels >= classes)]
        if len(wrong):
            raise DataError(
                f"labels must lie in [0, {classes}), since the network has {classes} outputs; "
                f"found {int(wrong[0])} among the {name} images"
            )


def _held_out(count: int, place: str) -> dict[str, int]:
    """Return the sizes of the sets drawn from `count` training images; some are always left to train on."""
    if count <= len(_HELD_OUT):
        raise DataError(
            f"{place} has {count} training images; calibration, reward, validation and training need one each"
        )
    scale = min(1.0, _MAX_HELD_OUT_SHARE * count / sum(_HELD_OUT.values()))
    return {name: max(1, int(size * scale)) for name, size in _HELD_OUT.items()}
