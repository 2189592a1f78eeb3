"""A folder of images, `train/CLASS/...` and `val/CLASS/...`, as ImageNet's and many others are laid out."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from prunegym.pruning.data.files import ImageFiles
from prunegym.pruning.data.images import Images
from prunegym.pruning.data.kinds import KINDS, Request
from prunegym.pruning.data.splits import ImageSplits, draw_splits
from prunegym.pruning.errors import DataError

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision


@KINDS.register("folder:DIR")
def folder(place: Path, request: Request) -> ImageSplits:
    """List the images; classes are numbered in the order of their names. None is read yet."""
    train, val = place / "train", place / "val"
    classes = _classes(train)
    val_classes = _classes(val)
    for name in classes:
        if name not in val_classes:
            raise DataError(f"{val} lacks the class {name!r} of {train}; both need the same folders")
    for name in val_classes:
        if name not in classes:
            raise DataError(f"{val} has a class {name!r} that {train} lacks; both need the same folders")
    (files, labels), (test_files, test_labels) = (_listed(part, classes, request) for part in (train, val))
    return draw_splits(
        files.part,
        labels,
        Images(test_files, test_labels),
        seed=request.seed,
        place=str(train),
        classes=len(classes),
    )


def _classes(part: Path) -> list[str]:
    if not part.is_dir():
        raise DataError(
            f"there is no folder {part}; folder:DIR needs DIR/train and DIR/val, in each a folder per class"
        )
    classes = sorted(entry.name for entry in os.scandir(part) if entry.is_dir())
    if not classes:
        raise DataError(f"{part} holds no folder; it needs one for each class")
    return classes


def _listed(part: Path, classes: list[str], request: Request) -> tuple[ImageFiles, Tensor]:
    """Return the images of all classes, and their labels."""
    names: list[str] = []
    counts = []
    seen: dict[str, str] = {}  # the folders so far: where they are -> their path below `part`
    for name in classes:
        files = []  # relative to `part`
        for root, _, entries in os.walk(part / name, followlinks=True):  # subsets are often made of links
            real = os.path.realpath(root)
            if real in seen:
                raise DataError(
                    f"{root} is {seen[real]} again, by way of a link, and its images would count twice; "
                    "remove the link"
                )
            seen[real] = root
            inside = os.path.relpath(root, part)
            files += [os.path.join(inside, entry) for entry in entries if entry.lower().endswith(_ENDINGS)]
        if not files:
            raise DataError(f"{part / name} holds no image ({', '.join(_ENDINGS)}); add some, or remove it")
        names += sorted(files)  # no file system's order decides a draw
        counts.append(len(files))
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return ImageFiles(part, names, request.network, request.progress), labels
