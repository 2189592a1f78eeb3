"""Every evaluated plan, on disk as soon as it is known: what a killed run need not evaluate again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prunegym.agents.errors import CheckpointError
from prunegym.agents.interface import EpisodicEnvironment
from prunegym.agents.rollout import EpisodeResult

EPISODES = "episodes.jsonl"  # the log's name in the folder of a run


class Episode(NamedTuple):
    """An evaluated plan, and who made it."""

    by: str  # "ppo", "random", ...
    result: EpisodeResult

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Episode:
        """Build an episode from a line of `episodes.jsonl`; keys it does not know are left alone.

        Raises:
            KeyError: a key is missing.
            TypeError: a value is of another kind than it should be.
            ValueError: likewise.
        """
        accuracy = data["accuracy"]
        data["reward"]["total"]  # what the episode is judged by
        return cls(
            by=str(data["by"]),
            result=EpisodeResult(
                plan={name: _ratios(entry) for name, entry in dict(data["plan"]).items()},
                reward={part: float(value) for part, value in dict(data["reward"]).items()},
                accuracy=None if accuracy is None else float(accuracy),
                macs=float(data["macs"]),
                params=float(data["params"]),
            ),
        )


def _ratios(entry: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(entry[name]) for name in ("static_ratio", "runtime_ratio")}


class EpisodeLog:
    """A file of one JSON object per line: `by`, who decided the plan, and the episode's result.

    Args:
        path: of the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ahead: list[str] = []  # an author's lines that a resumed run is to repeat
        self._kept = 0  # lines of that author before them

    def append(self, by: str, result: EpisodeResult) -> None:
        """Add a line; the file then holds it, whatever becomes of this process."""
        line = _line(by, result)
        if self._ahead and self._ahead[0] == line:
            self._kept += 1
            del self._ahead[0]
            return
        if self._ahead:
            self._cut(by, self._kept)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def entries(self) -> list[Episode]:
        """Return all episodes; see `read_episodes`."""
        return read_episodes(self.path)

    def take_up(self, environment: EpisodicEnvironment, by: str, count: int) -> None:
        """Go on with an author's lines after the first `count`; plans on file will not be evaluated again."""
        for episode in self.entries():
            environment.remember(episode.result.to_dict())
        self.keep(by, count)

    def keep(self, by: str, count: int) -> None:
        """Keep an author's first `count` lines for good, the later ones while what it appends repeats them.

        Dropped at once they would be lost to a resumed run that is killed before it has caught up. What
        others wrote stays; a last line cut short goes.
        """
        mine = [_line(author, result) for author, result in self.entries() if author == by]
        self._cut(by, len(mine))
        self._kept, self._ahead = count, mine[count:]

    def _cut(self, by: str, count: int) -> None:
        """Drop the author's lines after the first `count`, in one step."""
        lines = []
        for author, result in self.entries():
            if author != by or count > 0:
                lines.append(_line(author, result))
            count -= author == by
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, self.path)
        self._ahead = []


def read_episodes(path: Path) -> list[Episode]:
    """Return the episodes of a run, in their order; none where there is no such file yet.

    Raises:
        CheckpointError: a line is damaged. A last line that is no JSON does not count: a kill cut it short.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    episodes = []
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:  # no JSON, or no text at all
            if number == len(lines):
                break
            raise _damaged(path, number, error) from error
        try:
            episodes.append(Episode.from_dict(data))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, number, error) from error
    return episodes


def _damaged(path: Path, number: int, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: line {number} is damaged ({error!r}); remove it, or start afresh")


def _line(by: str, result: EpisodeResult) -> str:
    return json.dumps({"by": by, **result.to_dict()}) + "\n"
