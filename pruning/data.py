"""Images with labels, split so that what decides, what chooses and what is reported never meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.errors import DataError
from pruning.networks import NetworkSpec
from pruning.registry import unknown_name

_KINDS = ("digits", "npz:FILE")
_NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_NPZ_HELD_OUT = {"calibration": 512, "reward": 512, "validation": 1000}  # images
_NPZ_LARGEST_HELD_OUT_SHARE = 0.75  # of the training images; beyond it the sizes above shrink
# Of every 36 digits of a class, in the data set's order; dealt without a random generator, since the dense
# network's weights are kept in a cache and must not meet other images after an update of some library.
_DIGITS_DEAL = {"test": 8, "validation": 5, "reward": 5, "calibration": 5, "train": 13}
_DIGITS_STRIDE = 7  # coprime to 36: neighbours, often by the same writer, go to different splits


@dataclass(frozen=True, eq=False)
class Images:
    """Normalised images [N, C, H, W], float32, and their labels [N], int64."""

    images: Tensor
    labels: Tensor
    labelled: bool = True  # else the labels are the dense network's own answers, for want of true ones

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> Tensor:
        """Return the images [K, C, H, W] of these numbers, [K]."""
        return self.images[which]

    def batches(self, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [B, C, H, W] and labels [B] in order; the last batch may be smaller."""
        yield from zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


def joined(*parts: Images) -> Images:
    """Return the images of all parts, one part after the other."""
    return Images(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        labelled=all(part.labelled for part in parts),
    )


@dataclass(frozen=True, eq=False)
class ImageSplits:
    """Disjoint sets of images; all but `test` are drawn from the training images of the data set."""

    train: Images
    calibration: Images  # what criteria and compensation see
    reward: Images  # what a policy is rewarded on
    validation: Images  # chooses between candidates
    test: Images  # reported, and never used for any choice

    def all_but_test(self) -> Images:
        """Return what there is to learn from once every choice is made."""
        return joined(self.train, self.calibration, self.reward, self.validation)


def load_splits(spec: str, network: NetworkSpec, *, seed: int = 0) -> ImageSplits:
    """Load a data set, split it, and normalise it as `network` expects.

    Follow it with `check_labels` once the network's number of classes is known.

    Args:
        spec: `digits` (scikit-learn's, always split the same way) or `npz:FILE`.
        network: decides the images' shape and normalisation.
        seed: of the draw of the calibration, reward and validation images of an `npz` file.

    Raises:
        UnknownNameError: no such kind of data.
        DataError: the data is missing, damaged, or does not fit the network.
    """
    kind, _, place = spec.partition(":")
    if spec == "digits":
        return _digits(network)
    if kind == "npz" and place:
        return _npz(Path(place), network, seed)
    raise unknown_name("kind of data", spec, _KINDS)


def check_labels(splits: ImageSplits, classes: int) -> None:
    """Check the labels of every split against the network's number of outputs.

    Raises:
        DataError: a label is not in [0, classes).
    """
    for field in fields(splits):
        labels = getattr(splits, field.name).labels
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise DataError(
                f"labels must lie in [0, {classes}), since the network has {classes} outputs; "
                f"found {int(wrong[0])} among the {field.name} images"
            )


def _digits(network: NetworkSpec) -> ImageSplits:
    from sklearn.datasets import load_digits  # a second to import, for the one kind of data that needs it

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images[:, None]).byte()
    labels = torch.from_numpy(bunch.target).long()
    _check_size(pixels.shape, network, "digits")
    parts = _deal_digits(labels)
    return ImageSplits(
        **{name: _images(pixels[at], labels[at], network, white=16) for name, at in parts.items()}
    )


def _deal_digits(labels: Tensor) -> dict[str, Tensor]:
    """Return the indices of each split; each has its share of every class."""
    rank = torch.empty_like(labels)  # of each image among those of its class
    for label in labels.unique():
        rank[labels == label] = torch.arange(int((labels == label).sum()))
    cards = (rank * _DIGITS_STRIDE) % sum(_DIGITS_DEAL.values())
    edges = torch.tensor([0, *_DIGITS_DEAL.values()]).cumsum(0).tolist()
    ranges = zip(_DIGITS_DEAL, edges, edges[1:], strict=False)
    return {name: ((cards >= low) & (cards < high)).nonzero().squeeze(1) for name, low, high in ranges}


def _npz(path: Path, network: NetworkSpec, seed: int) -> ImageSplits:
    arrays = _read_npz(path)
    train_images, train_labels = _checked(arrays, "train", network, path)
    test_images, test_labels = _checked(arrays, "test", network, path)
    sizes = _held_out(len(train_labels), path)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train_labels)))
    parts = order.split([*sizes.values(), len(order) - sum(sizes.values())])
    drawn = {
        name: _images(train_images[at], train_labels[at], network)
        for name, at in zip((*sizes, "train"), parts, strict=True)
    }
    return ImageSplits(**drawn, test=_images(test_images, test_labels, network))


def _held_out(count: int, path: Path) -> dict[str, int]:
    """Return the sizes of the sets drawn from `count` training images; some are always left to train on."""
    if count <= len(_NPZ_HELD_OUT):
        raise DataError(
            f"{path} has {count} training images; calibration, reward, validation and training need one each"
        )
    scale = min(1.0, _NPZ_LARGEST_HELD_OUT_SHARE * count / sum(_NPZ_HELD_OUT.values()))
    return {name: max(1, int(size * scale)) for name, size in _NPZ_HELD_OUT.items()}


def _read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise DataError(f"there is no data file {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            held = archive.files
            arrays = {key: archive[key] for key in _NPZ_KEYS if key in held}
    except Exception as error:  # a damaged archive fails in a dozen ways, by where it is damaged
        raise DataError(
            f"{path} is truncated, damaged, or no archive of plain arrays; write it with numpy.savez"
        ) from error
    missing = [key for key in _NPZ_KEYS if key not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(held) or 'nothing'}")
    return arrays


def _checked(
    arrays: dict[str, NDArray[np.generic]], part: str, network: NetworkSpec, path: Path
) -> tuple[Tensor, Tensor]:
    """Return the pixels of one part, uint8 [N, C, H, W], and its labels, int64 [N]."""
    pixels = _checked_pixels(arrays[f"{part}_images"], network, f"{path}: {part}_images")
    labels = _checked_labels(arrays[f"{part}_labels"], f"{path}: {part}_labels")
    if len(pixels) != len(labels):
        raise DataError(f"{path}: there are {len(pixels)} {part}_images, but {len(labels)} {part}_labels")
    return pixels, labels


def _checked_pixels(images: NDArray[np.generic], network: NetworkSpec, place: str) -> Tensor:
    if images.dtype != np.uint8:
        has_nan = np.issubdtype(images.dtype, np.floating) and np.isnan(images).any()
        nan = " and holds NaN" if has_nan else ""
        raise DataError(f"{place} must be uint8 in 0..255, but is {images.dtype}{nan}")
    if images.ndim not in (3, 4):
        raise DataError(
            f"{place} must be [N, H, W, C], or [N, H, W] for one channel; got {list(images.shape)}"
        )
    pixels = torch.from_numpy(images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1))
    _check_size(pixels.shape, network, f"{place} {list(images.shape)}")
    return pixels


def _checked_labels(labels: NDArray[np.generic], place: str) -> Tensor:
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(f"{place} must be whole numbers [N], but is {labels.dtype} {list(labels.shape)}")
    if len(labels) == 0:
        raise DataError(f"{place} is empty")
    return torch.from_numpy(labels.astype(np.int64))


def _check_size(shape: torch.Size, network: NetworkSpec, place: str) -> None:
    if shape[1:] != network.input_shape:
        raise DataError(
            f"{place}: channels, height and width are {list(shape[1:])}, "
            f"but {network.name} takes {list(network.input_shape)}"
        )


def _images(pixels: Tensor, labels: Tensor, network: NetworkSpec, *, white: int = 255) -> Images:
    """Scale whole `pixels` in 0..`white` to [0, 1] and normalise them."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    return Images(pixels.float().div_(white).sub_(mean).div_(std).contiguous(), labels)
