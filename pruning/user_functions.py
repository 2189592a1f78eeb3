"""Functions of the user's own, by name: `FILE.py:NAME` or `package.module:NAME`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

from prunegym.pruning.errors import PruningError, UserCodeError, one_line
from prunegym.pruning.optional_packages import despite_torchvision

OWN_FOLDER = Path(__file__).resolve().parents[1]  # of the folders pruning, envs, agents and scripts


def named_function(spec: str) -> Callable[..., Any]:
    """Return what a user's file or module calls by a name; the file is executed.

    What the file imports, when it is executed or when the function is called, comes from the file's own
    folder unless an installed library has that name. A module is looked for in the working folder likewise.

    Raises:
        PruningError: there is no such file, module or callable, or it cannot be executed.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise PruningError(f"{spec!r} names no function; write FILE.py:NAME or package.module:NAME")
    module, folder = _executed(Path(place)) if place.endswith(".py") else _imported(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise PruningError(f"{place} defines no callable {name!r}; write FILE.py:NAME_OF_A_FUNCTION")
    return partial(_called, folder, function)


@contextmanager
def running_users_code(failed: Callable[[str], PruningError]) -> Iterator[None]:
    """Turn whatever a user's code raises in the block into a named error, an exit included; but not Ctrl-C.

    Working folder, standard streams, handlers of signals and torch's default numbers are afterwards as they
    were before.

    Args:
        failed: makes the error from its cause, such as "ValueError: no such layer".
    """
    with _surroundings_kept():
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise failed(_described(error)) from error


@contextmanager
def _surroundings_kept() -> Iterator[None]:
    folder, streams, numbers = None, (sys.stdout, sys.stderr), torch.get_default_dtype()
    with suppress(OSError):  # the working folder was removed
        folder = os.getcwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        torch.set_default_dtype(numbers)
        if folder is not None:
            os.chdir(folder)
        if threading.current_thread() is threading.main_thread():  # no other may set them
            for number, handler in handlers.items():
                if handler is not None:  # it was not set from Python, and cannot be
                    signal.signal(number, handler)


def as_user_error(error: BaseException) -> UserCodeError | None:
    """Return a named error that says where in a user's code an error arose; None if it arose in none.

    To end the process is a mistake of whoever does it, but Ctrl-C is none.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    if isinstance(error, KeyboardInterrupt) or not frames:
        return None
    if isinstance(error, Exception) and not _of_users(frames):
        return None
    return UserCodeError(
        f"the network's or function's own code failed ({_described(error)}); correct it there"
    )


def _described(error: BaseException) -> str:
    """Return an error in words, with the place in a user's code where it arose."""
    frames = list(traceback.walk_tb(error.__traceback__))
    cause = f"{type(error).__name__}: {one_line(error)}"
    users = _of_users(frames) or ([] if isinstance(error, Exception) else frames)
    if not users:
        return cause
    frame, line = users[-1]
    return f"{cause}, at {frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"


def _of_users(frames: list[tuple[FrameType, int]]) -> list[tuple[FrameType, int]]:
    """Return the frames of code that is neither Python's, nor an installed package's, nor this one's."""
    return [(frame, line) for frame, line in frames if not _is_library(_package(frame))]


def _package(frame: FrameType) -> str:
    """Return the top-level name of a frame's module; code that torch.fx wrote has none and counts as its."""
    return str(frame.f_globals.get("__name__", "torch")).partition(".")[0]


def _executed(path: Path) -> tuple[ModuleType, Path]:
    if not path.is_file():
        raise PruningError(f"there is no file {path}")
    path = path.resolve()
    # files of one name in two folders are two modules
    name = f"prunegym_user_{path.stem.replace('.', '_')}_{zlib.crc32(bytes(path)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    _append_to_path(str(path.parent))
    failure = f"{path} cannot be executed"
    with running_users_code(lambda cause: PruningError(f"{failure}: {cause}")), _modules_of(path.parent):
        despite_torchvision(partial(spec.loader.exec_module, module))
    return module, path.parent


def _imported(name: str) -> tuple[ModuleType, Path]:
    _append_to_path("")  # an installed command does not see the working folder, as `python -m` does
    folder = Path.cwd()
    failure = f"{name} cannot be imported"
    with running_users_code(lambda cause: PruningError(f"{failure}: {cause}")), _modules_of(folder):
        return despite_torchvision(partial(importlib.import_module, name)), folder


def _called(folder: Path, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a user's function, which may import modules of its folder."""
    with _modules_of(folder):
        return function(*args, **kwargs)


def _append_to_path(folder: str) -> None:
    """Let what runs outside of `_modules_of` find a folder's modules, too: last, so that it hides nothing."""
    if folder not in sys.path:
        sys.path.append(folder)


@contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    """Have top-level names stand for the modules of a folder, except for those of installed libraries.

    Where another module was imported under such a name, as from the folder of another user's file, it has the
    name again afterwards.
    """
    finder = _FINDERS.setdefault(folder, _FolderFinder(folder))
    taken = finder.names_of_others()
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in taken}
    sys.modules.update(finder.aside)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        own = [name for name in sys.modules if name.partition(".")[0] in taken]
        finder.aside = {name: sys.modules.pop(name) for name in own}
        sys.modules.update(others)


class _FolderFinder:
    """Finds the modules of a folder, unless an installed library has the name; see `sys.meta_path`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.aside: dict[str, ModuleType] = {}  # its modules whose names stand for others in `sys.modules`

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the specification of a top-level module that stands in the folder."""
        if path is not None or _is_library(name):
            return None
        spec = PathFinder.find_spec(name, [str(self._folder)])
        if spec is None or spec.loader is not None:
            return spec
        fixed = ModuleSpec(
            name, None, is_package=True
        )  # no __init__.py: Python would look along sys.path anew
        fixed.submodule_search_locations = [str(self._folder / name)]
        return fixed

    def names_of_others(self) -> set[str]:
        """Return the names of its modules by which modules from elsewhere are known now."""
        try:
            names = {entry.partition(".")[0] for entry in os.listdir(self._folder)}
        except OSError:  # there is no such folder on this machine
            return set()
        imported = [name for name in names if name in sys.modules]
        return {name for name in imported if not self._holds(sys.modules[name]) and self.find_spec(name)}

    def _holds(self, module: ModuleType) -> bool:
        places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None) or ""]
        return any(Path(place).parent.resolve() == self._folder for place in places)


_FINDERS: dict[Path, _FolderFinder] = {}  # of the folders that functions came from


def _is_library(name: str) -> bool:
    """Return whether a top-level name belongs to Python, to an installed package or to this one."""
    if name in ("__main__", __name__.partition(".")[0]) or name in sys.stdlib_module_names:
        return True
    # of what is on the path, and in front: a script's folder, and what `python -m` and pytest add
    no_libraries = {OWN_FOLDER, _resolved("."), *_FINDERS}
    main = sys.modules["__main__"]
    if main.__spec__ is None and (script := getattr(main, "__file__", None)):
        no_libraries.add(place.parent if (place := _resolved(script)) else None)
    libraries = [entry for entry in sys.path if _resolved(entry) not in no_libraries]
    others = [
        finder for finder in sys.meta_path if finder is not PathFinder and finder not in _FINDERS.values()
    ]
    return any(finder.find_spec(name, None) for finder in others) or bool(
        PathFinder.find_spec(name, libraries)
    )


def _resolved(entry: str) -> Path | None:
    """Return the folder that an entry of the import path names; None where it was removed."""
    with suppress(OSError):
        return Path(entry).resolve()
    return None
