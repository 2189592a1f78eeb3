"""Images in one file of arrays, as numpy.savez writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunegym.pruning.data.images import Images
from prunegym.pruning.data.kinds import KINDS, Request
from prunegym.pruning.data.pixels import StoredPixels, check_size
from prunegym.pruning.data.splits import ImageSplits, draw_splits
from prunegym.pruning.errors import DataError
from prunegym.pruning.files.content import foreign_content
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.networks.registry import NetworkSpec

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


@KINDS.register("npz:FILE")
def npz(place: Path, request: Request) -> ImageSplits:
    """Load uint8 arrays of images, [N, H, W, C] or [N, H, W], and labels, [N]."""
    arrays = _read(place)
    pixels, labels = _checked(arrays, "train", request.network, place)
    test_pixels, test_labels = _checked(arrays, "test", request.network, place)
    return draw_splits(
        lambda at: StoredPixels(pixels[at], request.network),
        labels,
        Images(StoredPixels(test_pixels, request.network), test_labels),
        seed=request.seed,
        place=str(place),
    )


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if path.is_dir():
        raise DataError(f"{path} is a folder; name the .npz file in it, or use folder:DIR for image files")
    if not path.is_file():
        raise DataError(f"there is no data file {path}")
    key = None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            held, arrays = archive.files, {}
            for key in _KEYS:
                if key in held:
                    arrays[key] = archive[key]
    except Exception as error:  # a damaged archive fails in a dozen ways, by where it is damaged
        raise_machine_failure(error, reading=path)
        if "allow_pickle" in str(error) and key is not None:
            raise DataError(
                f"{path}: {key} holds Python objects, and loading them could run code; save plain numbers"
            ) from error
        found = foreign_content(path) or (
            "truncated, damaged, or no archive of plain arrays; write it with numpy.savez"
        )
        raise DataError(f"{path} is {found}") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # bytes: a file of another kind in the archive
            raise DataError(f"{path}: {key} is no array; write the file with numpy.savez")
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(held) or 'nothing'}")
    return arrays


def _checked(
    arrays: dict[str, NDArray[np.generic]], part: str, network: NetworkSpec, path: Path
) -> tuple[Tensor, Tensor]:
    """Return the pixels of one part, uint8 [N, C, H, W], and its labels, int64 [N]."""
    pixels = _checked_pixels(arrays[f"{part}_images"], network, f"{path}: {part}_images")
    labels, place = arrays[f"{part}_labels"], f"{path}: {part}_labels"
    if labels.dtype.kind not in "iu" or labels.ndim != 1:  # to NumPy, spans of time are integers too
        raise DataError(f"{place} must be whole numbers [N], but is {labels.dtype} {list(labels.shape)}")
    if len(labels) == 0:
        raise DataError(f"{place} is empty")
    if len(pixels) != len(labels):
        raise DataError(f"{path}: there are {len(pixels)} {part}_images, but {len(labels)} {part}_labels")
    return pixels, torch.from_numpy(labels.astype(np.int64))


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
    check_size(pixels.shape, network, f"{place} {list(images.shape)}")
    return pixels
