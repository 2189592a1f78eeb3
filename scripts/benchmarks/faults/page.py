"""The findings of a campaign as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prunegym.pruning.files.writing import written_whole
from prunegym.scripts.benchmarks.faults.findings import Record, failures, table
from prunegym.scripts.benchmarks.faults.verdicts import FAILED, PASSED

TEXT = """# What happens when something goes wrong

Written by `prunegym benchmark faults --out faults.jsonl --table docs/faults.md` (seed {seed}).

The commands of this tool are attacked, over a thousand times, on a network of a few hundred weights and
images of 8 pixels that the campaign makes itself. Each command runs in a process of its own, with a home, a
cache and a working folder of its own, and with limits of time and memory.

- *kills*: every verb that writes, with every algorithm, is killed (`kill -9`) at a random moment, or just
  before or shortly after one of its file-system steps, some twice. Repeated, with `--resume` where the verb
  has it, it must end in what a run never disturbed writes, byte for byte except for clocks, and leave no
  temporary file.
- *machine*: a file-system step fails (no space, over quota, input/output error, no permission, read-only, too
  many open files), once or from then on; files, memory or open files are limited; the folder of results is
  removed meanwhile; SIGTERM and Ctrl-C come; standard output is closed or full; there is no home; the cache
  cannot be used; a link in the folder of results leads elsewhere; `config.json` is missing. The command must
  end in order, with one line that says why if it failed, and work when it is repeated.
- *inputs*: wrong words for every flag of every verb, YAML files, images, weights, folders of images, networks
  and score functions whose code misbehaves. Each must be refused in one line, or work where it is right.
- *records*: files that the tool wrote and reads again are changed, cut short, get a bit flipped, or are
  replaced by code to be unpickled. They must be refused in one line, or give what they say.

What is drawn depends on the seed and the name of the case alone: `prunegym benchmark faults --only kills/17`
repeats one and keeps its folders. `--share 0.05` runs the first twentieth of each kind. With `--out` a
campaign that was ended goes on where it stopped.

To attack more, add a command to `COMMANDS` (scripts/benchmarks/faults/commands.py), a record and what reads
it to `READINGS` (scripts/benchmarks/faults/records.py), a fault of the machine to `STRIKES`
(scripts/benchmarks/faults/machine.py), or a kind of bad input to `SOURCES`
(scripts/benchmarks/faults/inputs.py).

"""


def write_page(path: Path, record: Record) -> None:
    """Write the page on what is attacked, how many cases came to what, and those that failed."""
    with written_whole(path) as temporary:
        temporary.write_text("".join(_page(record)), encoding="utf-8")


def _page(record: Record) -> Iterator[str]:
    yield TEXT.format(seed=record["seed"])
    headings, *rows = table(record)
    for cells in (headings, ["---"] * len(headings), *rows):
        yield f"| {' | '.join(cells)} |\n"
    yield "\n"
    for verdict, meaning in {**PASSED, **FAILED}.items():
        if verdict in headings:
            yield f"- *{verdict}*: {meaning}\n"
    failed = failures(record)
    if failed:
        yield "\n## What failed\n\n"
    for name, finding in failed.items():
        attack = finding["attack"].replace("`", "'").replace("\n", " ")
        yield f"- {name}, {finding['verdict']}: `{attack}`\n"
