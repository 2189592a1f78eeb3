"""The log of evaluated plans, on disk one by one, so that a killed run need not evaluate them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prunegym.agents.errors import CheckpointError
from prunegym.agents.interface import EpisodicEnvironment
from prunegym.agents.rollout import EpisodeResult
from prunegym.pruning.errors import PlanError, PruningError
from prunegym.pruning.files.plain_data import parse_json
from prunegym.pruning.files.writing import written_whole
from prunegym.pruning.machine_failures import written_to
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.techniques import check_amounts

EPISODES = "episodes.jsonl"  # the log's name in the folder of a run
LONGEST_NAME = 200  # of a method, in characters
LARGEST_NUMBER = 1e30  # of a score, a loss or a share, either way


class Episode(NamedTuple):
    """An evaluated plan and the method that made it."""

    by: str  # "ppo", "random", ...
    result: EpisodeResult

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Episode:
        """Build an episode from a line of `episodes.jsonl`; unknown keys are ignored.

        Raises:
            KeyError: a key is missing.
            OverflowError, TypeError, ValueError: a value is of the wrong type, or beyond any reason.
            PlanError: an amount of the plan makes no sense.
        """
        accuracy, by = data["accuracy"], data["by"]
        if not isinstance(by, str) or len(by) > LONGEST_NAME:
            raise ValueError(f"the method must be a name of at most {LONGEST_NAME} characters")
        plan = {site: _numbers(decision) for site, decision in dict(data["plan"]).items()}
        check_amounts(CompressionPlan(plan))
        reward, shares = _numbers(data["reward"]), _numbers(data["shares"])
        reward["total"], shares["macs"]  # must be there: episodes are compared by them
        accuracy = None if accuracy is None else _number(accuracy)
        return cls(by, EpisodeResult(plan, reward, accuracy, shares))


class EpisodeLog:
    """A file with one JSON object per line: `by`, the method that decided the plan, and the episode's result.

    Args:
        path: path of the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._expected: list[str] = []  # lines of a method on file that its resumed run is to repeat
        self._n_kept = 0  # lines of that method before them

    def append(self, by: str, result: EpisodeResult) -> None:
        """Append a line, which is on disk when this returns."""
        line = _line(by, result)
        if self._expected and self._expected[0] == line:
            self._n_kept += 1
            del self._expected[0]
            return
        if self._expected:
            self._cut(by, self._n_kept)
        with written_to(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def entries(self) -> list[Episode]:
        """Return all episodes; see `read_episodes`."""
        return read_episodes(self.path)

    def resume(self, environment: EpisodicEnvironment, by: str, count: int) -> None:
        """Continue a method's lines after its first `count`, and tell the environment of all plans on file.

        Args:
            environment: gets all results on file, so that it does not evaluate these plans again.
            by: the method that continues.
            count: see `keep`.

        Raises:
            CheckpointError: a line is damaged, or its plan is of another network.
        """
        for number, episode in enumerate(self.entries(), start=1):
            try:
                environment.remember(episode.result.to_dict())
            except (KeyError, StopIteration, TypeError, PruningError) as error:  # of another network
                raise _damaged(self.path, number, error) from error
        self.keep(by, count)

    def keep(self, by: str, count: int) -> None:
        """Keep a method's first `count` lines, and later ones as long as the lines appended repeat them.

        If later lines were dropped at once, they would be lost when a resumed run is killed before it has
        repeated them. The lines of other methods stay; an incomplete last line is dropped.
        """
        lines = [_line(method, result) for method, result in self.entries() if method == by]
        self._cut(by, len(lines))
        self._n_kept, self._expected = count, lines[count:]

    def _cut(self, by: str, count: int) -> None:
        """Drop the method's lines after the first `count`, atomically."""
        lines = []
        for method, result in self.entries():
            if method != by or count > 0:
                lines.append(_line(method, result))
            count -= method == by
        with written_whole(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        self._expected = []


def read_episodes(path: Path) -> list[Episode]:
    """Return the episodes of a run in order; an empty list if the file does not exist yet.

    Raises:
        CheckpointError: a line is damaged. A last line that is not JSON is ignored: a killed run left it
            incomplete.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    episodes = []
    for line_number, line in enumerate(lines, start=1):
        try:
            data = parse_json(line)
        except ValueError as error:  # no JSON, or no text at all
            if line_number == len(lines):
                break
            raise _damaged(path, line_number, error) from error
        try:
            episodes.append(Episode.from_dict(data))
        except (KeyError, OverflowError, TypeError, ValueError, PlanError) as error:
            raise _damaged(path, line_number, error) from error
    return episodes


def _numbers(data: Any) -> dict[str, float]:
    return {name: _number(value) for name, value in dict(data).items()}


def _number(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError(f"{value!r} is no number")
    number = float(value)
    if not abs(number) <= LARGEST_NUMBER:  # nor is a NaN
        raise ValueError(f"{value!r} is beyond any reason")
    return number


def _damaged(path: Path, line_number: int, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: line {line_number} is damaged ({error!r}); remove it, or start afresh")


def _line(by: str, result: EpisodeResult) -> str:
    return json.dumps({"by": by, **result.to_dict()}) + "\n"
