"""What all cases share: material, and what commands do that nobody disturbs."""

from __future__ import annotations

import fcntl
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from prunegym.scripts.benchmarks.faults.children import Place, run
from prunegym.scripts.benchmarks.faults.commands import COMMANDS
from prunegym.scripts.benchmarks.faults.comparing import written
from prunegym.scripts.benchmarks.faults.material import Material, make_material
from prunegym.scripts.benchmarks.faults.steps import killed_at, noted

T = TypeVar("T")
CHECKPOINT = re.compile(r"rename \S*checkpoint/\S*state\.safetensors$")


@dataclass(frozen=True)
class Reference:
    """A command that nobody disturbed."""

    files: Mapping[str, Any]  # see `written`
    steps: tuple[str, ...]  # below its folders
    seconds: float

    def drawn(self, rng: Random) -> int:
        """Draw the number of a step; three in four are no curves', which are the most by far."""
        telling = [number for number, step in enumerate(self.steps) if "tensorboard" not in step]
        return rng.choice(telling if rng.random() < 0.75 else range(len(self.steps)))


class World:
    """The files that cases share; what is dear is made when the first case needs it.

    Args:
        folder: where they are kept; must not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.material: Material = make_material(folder / "material")

    @property
    def known(self) -> dict[str, str]:
        """What the words in braces of a command stand for."""
        pruned = self.finished("prune", known={})
        return {
            "model": self.material.model,
            "data": f"npz:{self.material.data}",
            "weights": str(self.material.weights),
            "compressed": str(pruned.out / "compressed"),
            "plan": str(pruned.out / "plan.json"),
        }

    def argv(self, name: str, *, repeated: bool = False) -> list[str]:
        """Return a command's line."""
        return COMMANDS[name].argv(self.material, self.known, repeated=repeated)

    def finished(self, name: str, known: Mapping[str, str] | None = None) -> Place:
        """Return the folders of a command that nobody disturbed; not to be changed."""
        place = Place(self.folder / "finished" / name.replace(" ", "-"))
        with _made_once(place.root) as made:
            if not made:
                words = dict(self.known if known is None else known)
                argv = COMMANDS[name].argv(self.material, words)
                watching = partial(noted, (place.prepared().work, place.cache), place.root / "steps")
                ended = run(place, argv, watching)
                assert ended.code == 0, f"{' '.join(argv)}: {ended}"
                steps = tuple(json.loads((place.root / "steps").read_text(encoding="utf-8")))
                reference = Reference(written(place), steps, ended.seconds)
                (place.root / "reference").write_bytes(pickle.dumps(reference))
        return place

    def reference(self, name: str) -> Reference:
        """Return what a command does that nobody disturbs."""
        found: Reference = pickle.loads((self.finished(name).root / "reference").read_bytes())
        return found

    def interrupted(self, name: str) -> Place:
        """Return the folders of a command that was killed half-way, after a checkpoint; not to be changed."""
        steps = self.reference(name).steps
        checkpoints = [number for number, step in enumerate(steps) if CHECKPOINT.search(step)]
        half_way = checkpoints[(len(checkpoints) - 1) // 2]
        place = Place(self.folder / "interrupted" / name.replace(" ", "-"))
        with _made_once(place.root) as made:
            if not made:
                folders = (place.prepared().work, place.cache)
                run(place, self.argv(name), partial(killed_at, folders, half_way + 1, None))
        return place

    def kept(self, name: str, make: Callable[[Place], T]) -> T:
        """Return what was made of a place, which is made when it is first needed."""
        place = Place(self.folder / "kept" / name)
        with _made_once(place.root) as made:
            if not made:
                (place.root / "made").write_bytes(pickle.dumps(make(place.prepared())))
        found: T = pickle.loads((place.root / "made").read_bytes())
        return found

    def copied(self, source: Place, place: Place) -> Place:
        """Copy the work folder and the cache of a command to another place."""
        for one, other in ((source.work, place.work), (source.cache, place.cache)):
            shutil.copytree(one, other, symlinks=True, dirs_exist_ok=True)
        return place


@contextmanager
def _made_once(folder: Path) -> Iterator[bool]:
    """Yield whether a folder was made before; who makes it keeps others waiting."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{folder.name}.done")
    with folder.with_name(f"{folder.name}.lock").open("ab") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield done.exists()
        done.touch()
