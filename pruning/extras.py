"""Packages that only some work needs: imported when it does, or refused with what to install."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import torch

from pruning.errors import PruningError, one_line


def imported(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Return a module of a package that is not always installed.

    Args:
        module: its name, such as `torchvision.models`.
        extra: of `secateur`, which installs the package.
        purpose: what needs it, for the error.

    Raises:
        PruningError: the package is missing, or does not fit the installed torch.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PruningError(
            f'{purpose} need {package} ({one_line(error)}): pip install "secateur[{extra}]"'
        ) from error
    except RuntimeError as error:  # compiled for another torch
        missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
        if missing is not None and _declare_operator(missing[1]):
            return imported(module, extra=extra, purpose=purpose)
        raise PruningError(
            f"{package} does not fit the installed torch ({one_line(error)}): install versions that match"
        ) from error


_declared: dict[str, torch.library.Library] = {}  # an operator lives as long as what declared it


def _declare_operator(name: str) -> bool:
    """Declare an operator of torchvision's, for detectors' boxes; return whether that is new.

    Where torchvision's compiled half does not fit torch, as beside a CPU build, its Python half refuses to
    load for want of such names alone. Classifiers and folders of images need no more than that half.
    """
    if name in _declared:
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(f"{name}(Tensor boxes, Tensor scores, float overlap) -> Tensor")
    _declared[name] = library
    return True
