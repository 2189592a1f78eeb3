"""The findings of a campaign, the file that keeps them, and how many came to what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunegym.pruning.files.writing import written_whole
from prunegym.scripts.benchmarks.faults.verdicts import FAILED, PASSED
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.options.parser import UsageError

Record = Mapping[str, Any]  # seed, and cases: name -> finding as plain data


class Findings:
    """The findings so far and, with `--out`, the file that keeps them: JSON lines, settings in the first.

    Raises:
        UsageError: the file holds something else, or findings of another seed.
    """

    def __init__(self, config: BenchmarkConfig) -> None:
        self._path = config.out
        self.cases: dict[str, dict[str, Any]] = {}
        if self._path is None:
            return
        settings = {"benchmark": config.name, "seed": config.seed}
        if self._path.exists():
            self.cases = _read(self._path, settings)
        lines = [settings, *({"case": name, **finding} for name, finding in self.cases.items())]
        with written_whole(self._path) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    def add(self, name: str, finding: Mapping[str, Any]) -> None:
        """Keep a finding."""
        self.cases[name] = dict(finding)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case": name, **finding}) + "\n")


def _read(path: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    try:
        whole = path.read_text(encoding="utf-8").rpartition("\n")[
            0
        ]  # a kill may have cut the last line short
        first, *findings = [json.loads(line) for line in whole.splitlines()]
        if first == settings:
            return {finding.pop("case"): finding for finding in findings}
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} holds no findings ({error}); give another --out") from error
    raise UsageError(f"{path} holds findings of {first}, not of {settings}; give another --out")


def failures(record: Record) -> dict[str, Mapping[str, Any]]:
    """Return the findings that are failures, the worst first."""
    worst = list(FAILED)
    failed = {name: found for name, found in record["cases"].items() if found["verdict"] in FAILED}
    return dict(sorted(failed.items(), key=lambda item: worst.index(item[1]["verdict"])))


def table(record: Record) -> list[tuple[str, ...]]:
    """Return how many cases of each kind came to each verdict: headings, and a row for each kind."""
    counts: dict[str, Counter[str]] = {}
    for name, finding in record["cases"].items():
        counts.setdefault(name.partition("/")[0], Counter())[finding["verdict"]] += 1
    verdicts = [verdict for verdict in (*PASSED, *FAILED) if any(row[verdict] for row in counts.values())]
    rows = [
        (kind, str(sum(row.values())), *(str(row[verdict]) for verdict in verdicts))
        for kind, row in counts.items()
    ]
    return [("kind", "cases", *verdicts), *rows]
