"""What came of a case, and what a command may do under attack."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

from prunegym.scripts.benchmarks.faults.children import Ended, Place
from prunegym.scripts.cli import DONE, IMPOSSIBLE, MISUSED

PASSED = {  # verdict -> what it says
    "equal": "the result is that of a run never disturbed",
    "refused": "one line said what is wrong, and the command then worked",
    "done": "the input is right, and the command did its work",
    "changed": "a record that was changed by hand, but is whole, gave what it says",
}
FAILED = {
    "code run": "code in a file was run",
    "touched outside": "a file outside of the results' folder and the cache was touched",
    "unequal": "the result is another than that of a run never disturbed",
    "not resumed": "the command was refused when it was repeated",
    "hang": "it did not end",
    "traceback": "a traceback was printed",
    "wrong code": "the exit code is none of those that are documented, or of success where nothing was done",
    "no line": "it failed, and no line says why",
    "several lines": "it failed, and more than one line says why",
    "long line": "the line is longer than a person reads",
    "control characters": "what was printed holds raw control characters",
    "leftover": "files were left behind that a run never disturbed does not leave",
    "lingering process": "a process of its own outlived it",
    "broken case": "the campaign itself failed",
}
LONGEST_LINE = 700  # characters
SHOWN = 600  # characters of what a command said, in the results
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Finding(NamedTuple):
    """What came of a case."""

    verdict: str
    attack: str  # what was done, in words
    said: str = ""  # what the command said, or what is unequal

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return self._asdict()


def fault(
    ended: Ended,
    place: Place,
    *,
    codes: Collection[int] = (DONE, MISUSED, IMPOSSIBLE),
    silenced: bool = False,
) -> str | None:
    """Return the worst that a command did that none may do; None if there is nothing.

    Args:
        ended: the command.
        place: its folders.
        codes: the exit codes that may come of it.
        silenced: its standard output led nowhere.
    """
    ours = [line for line in ended.err.splitlines() if line.startswith("prunegym: ")]
    failed = ended.code != DONE
    worst_first = {
        "code run": place.ran.exists(),
        "touched outside": not untouched(place),
        "hang": ended.hung,
        "traceback": "Traceback (most recent" in ended.err or "Exception ignored" in ended.err,
        "wrong code": ended.code not in codes or not (failed or silenced or (ended.out + ended.err).strip()),
        "no line": failed and not ours,
        "several lines": failed and len(ours) > 1,
        "long line": any(len(line) > LONGEST_LINE for line in ours),
        "control characters": bool(CONTROL.search(ended.out + ended.err)),
        "lingering process": ended.lingering,
    }
    return next((name for name, found in worst_first.items() if found), None)


def untouched(place: Place) -> bool:
    """Return whether the folder outside is as it was made."""
    files = {path.relative_to(place.outside).as_posix() for path in place.outside.rglob("*")}
    precious = place.outside / "precious"
    return files == {precious.name} and precious.read_text(encoding="utf-8") == "not yours\n"


def shortened(ended: Ended) -> str:
    """Return exit code and what was said, to be read by a person."""
    text = ended.err.strip()
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 4]} ... {text[-3 * SHOWN // 4 :]}"
    return f"exit code {ended.code}: {text}"
