"""Optional dependencies: imported when they are needed, or refused with what to install."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TypeVar

import torch

from prunegym.pruning.errors import PruningError, one_line

Loaded = TypeVar("Loaded")


def imported(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Return a module of a package that is not always installed.

    Args:
        module: the name of the module, such as `torchvision.models`.
        extra: the extra of `prunegym` that installs the package.
        purpose: the work that needs it, for the error.

    Raises:
        PruningError: the package is missing, or does not fit the installed torch.
    """
    package = module.partition(".")[0]
    try:
        return despite_torchvision(partial(importlib.import_module, module))
    except ImportError as error:
        raise PruningError(
            f'{purpose} need {package} ({one_line(error)}): pip install "prunegym[{extra}]"'
        ) from error
    except RuntimeError as error:  # compiled for another torch
        raise PruningError(
            f"{package} does not fit the installed torch ({one_line(error)}): install versions that match"
        ) from error


def despite_torchvision(load: Callable[[], Loaded]) -> Loaded:
    """Return `load()`, which may import torchvision where its compiled half does not fit torch.

    As beside a CPU build of torch: its Python half then refuses to load for want of a few operators on
    detectors' boxes. Classifiers and folders of images need no more than that half, so they are declared.
    """
    try:
        return load()
    except RuntimeError as error:
        missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
        if missing is None or missing[1] in _declared:
            raise
        library = _declared[missing[1]] = torch.library.Library("torchvision", "FRAGMENT")
        library.define(f"{missing[1]}(Tensor boxes, Tensor scores, float overlap) -> Tensor")
        return despite_torchvision(load)


_declared: dict[str, torch.library.Library] = {}  # an operator lives as long as what declared it
