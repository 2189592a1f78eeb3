"""Functions of the user's own, by name: `FILE.py:NAME` or `package.module:NAME`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from prunegym.pruning.errors import PruningError, one_line
from prunegym.pruning.optional_packages import despite_torchvision


def named_function(spec: str) -> Callable[..., Any]:
    """Return what a user's file or module calls by a name; the file is executed.

    Raises:
        PruningError: there is no such file, module or callable, or it cannot be executed.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise PruningError(f"{spec!r} names no function; write FILE.py:NAME or package.module:NAME")
    module = _executed(Path(place)) if place.endswith(".py") else _imported(place)
    found = getattr(module, name, None)
    if not callable(found):
        raise PruningError(f"{place} defines no callable {name!r}; write FILE.py:NAME_OF_A_FUNCTION")
    return found


def _executed(path: Path) -> ModuleType:
    if not path.is_file():
        raise PruningError(f"there is no file {path}")
    found = importlib.util.spec_from_file_location(f"prunegym_user_{path.stem}", path.resolve())
    assert found is not None  # the name ends in .py
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses and pickle look their module up by name
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # the file may import its neighbours, as when it is run
        sys.path.append(folder)  # last, so that it hides nothing
    try:
        despite_torchvision(partial(found.loader.exec_module, module))
    except (Exception, SystemExit) as error:
        raise PruningError(f"{path} cannot be executed: {type(error).__name__}: {one_line(error)}") from error
    return module


def _imported(name: str) -> ModuleType:
    if "" not in sys.path:  # an installed command does not see the working folder, as `python -m` does
        sys.path.append("")
    try:
        return despite_torchvision(partial(importlib.import_module, name))
    except (Exception, SystemExit) as error:
        raise PruningError(f"{name} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
