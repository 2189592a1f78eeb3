"""Preparation of image files as a network's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from prunegym.pruning.data.pixels import normalised
from prunegym.pruning.errors import DataError, one_line
from prunegym.pruning.files.content import foreign_content
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.networks.registry import NetworkSpec

_MODES = {1: "L", 3: "RGB"}  # by channels
_MAX_ASPECT = 100  # of the longer side to the shorter
_MARGIN = 8 / 7  # by which the shorter side exceeds the crop: 256 pixels for 224, as is usual


def read_image(path: Path, network: NetworkSpec) -> Tensor:
    """Return the image in a file as a network reads it: [C, H, W], float32, normalised.

    Raises:
        DataError: the file is no image of bytes, or damaged, or far too narrow, or the network has no use
            for it.
    """
    mode = _MODES.get(network.input_shape[0])
    if mode is None:
        raise DataError(
            f"{path}: files hold images of one or three channels, "
            f"but {network.name} takes {network.input_shape[0]}"
        )
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait forever
            raise OSError("it is no ordinary file")
        with Image.open(path) as file:
            deep = file.mode.startswith(("I", "F"))
            image = file.convert(mode)
    except Exception as error:  # a damaged file fails in a dozen ways, by where it is damaged
        raise_machine_failure(error, reading=path)
        found = foreign_content(path) if isinstance(error, UnidentifiedImageError) else None
        if found and not found.endswith("image"):
            raise DataError(f"{path} is {found}") from error
        raise DataError(
            f"{path} cannot be read as an image ({one_line(error)}); repair it or remove it"
        ) from error
    if deep:
        raise DataError(
            f"{path} has more than 8 bits per channel; convert it, since brighter pixels would be cut"
        )
    if max(image.size) > _MAX_ASPECT * min(image.size):  # scaled, it could fill the memory
        raise DataError(
            f"{path} is {image.width} by {image.height} pixels, too narrow to crop; repair it or remove it"
        )
    return prepared(image, network)


def prepared(image: Image.Image, network: NetworkSpec) -> Tensor:
    """Return an image as a network reads it: by its own transform, or else by a generic one.

    The generic one takes an image of the network's size as it is. Any other is scaled (bilinear, antialiased)
    until it exceeds that size by a seventh on the tighter side, and its centre is taken.

    Raises:
        DataError: the network's own transform gives another size than the network takes.
    """
    if network.transform is None:
        pixels = np.asarray(_fitted(image, *network.input_shape[1:]))
        return normalised(
            torch.from_numpy(pixels.copy()).view(*pixels.shape[:2], -1).permute(2, 0, 1), network
        )
    prepared_image = network.transform(image)
    if prepared_image.shape != network.input_shape:
        raise DataError(
            f"the transform of {network.name} gives images {list(prepared_image.shape)}, "
            f"but its input size is {list(network.input_shape)}; give --input-size"
        )
    return prepared_image


def _fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    scale = _MARGIN * max(width / image.width, height / image.height)
    scaled = image.resize(
        (round(scale * image.width), round(scale * image.height)), Image.Resampling.BILINEAR
    )
    left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
    return scaled.crop((left, top, left + width, top + height))
