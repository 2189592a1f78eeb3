"""`prunegym VERB`: find the verb, run it, and turn every named error into one line and an exit code."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from prunegym.agents import AgentError
from prunegym.pruning.errors import ImpossibleBudgetError, PruningError, one_line, printable
from prunegym.pruning.machine_failures import machine_failure, machine_failure_line
from prunegym.pruning.registry import unknown_name
from prunegym.pruning.user_functions import as_user_error
from prunegym.scripts.options.parser import HelpShown, UsageError
from prunegym.scripts.standard_streams import standard_error, standard_output, sturdy_streams

VERBS = {
    "train": "learn a pruning policy and write policy, plan and compressed network",
    "train-per-input": "learn a policy that sets runtime ratios for each input, gate by gate",
    "prune": "apply a plan, a policy or an even allocation",
    "finetune": "train a compressed network, on labels or to follow the dense one",
    "export": "write a compressed network as ONNX or for torch.export, checked against it",
    "evaluate": "measure a network, dense or compressed, on its test images",
    "describe": "list channel groups, what is frozen and why, and the reachable budgets; changes nothing",
    "latency": "measure what a network's layers take on this device, for latency budgets",
    "report": "build one HTML page of a run: figures, pictures, plan, and what speaks for it",
    "benchmark": "measure this installation",
}
RESUMABLE = ("train", "train-per-input", "finetune")
LONGEST_LINE, LEFT_OUT = 600, " ... "  # characters of a message, and what stands for the middle of it
DONE, MISUSED, IMPOSSIBLE, INTERRUPTED, TERMINATED = 0, 2, 3, 130, 143


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, so that the process ends as it does after Ctrl-C: in order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; return 0 done, 2 wrong usage or input, 3 budget impossible, 130 or 143 interrupted."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    return run_verb(verb, rest)


def run_verb(verb: str, argv: Sequence[str] | None = None) -> int:
    """Run one verb with its arguments (the process's own if None); return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.WARNING, handlers=[_warnings()])
    with sturdy_streams():
        try:
            _run(verb, argv)
            standard_output().flush()
        except ImpossibleBudgetError as error:
            return _complain(error, IMPOSSIBLE)
        except (PruningError, AgentError, UsageError) as error:
            return _complain(error, MISUSED)
        except KeyboardInterrupt as cause:
            print(f"prunegym: interrupted{_hint(verb, argv)}", file=standard_error())
            return TERMINATED if isinstance(cause, Terminated) else INTERRUPTED
        except HelpShown:
            raise
        except BaseException as error:
            known = machine_failure(error) or as_user_error(error)
            if known is None and isinstance(error, OSError):
                known = error  # no such folder, for one
            if known is None:
                raise  # a mistake of this project's, which its stack trace helps to find
            return _complain(known, MISUSED)
    return DONE


def _hint(verb: str, argv: Sequence[str]) -> str:
    """Return how to go on with what was interrupted."""
    if verb not in RESUMABLE:
        return ""
    instead = " in place of --overwrite" if "--overwrite" in argv else ""
    return f"; the same command with --resume{instead} goes on"


def _run(verb: str, argv: Sequence[str]) -> None:
    if verb in ("-h", "--help"):
        print("usage: prunegym VERB [--help] ...\n")
        print("\n".join(f"  {name:<15} {text}" for name, text in VERBS.items()))
        return
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    with _sigterm_interrupts(), _failures_told_once():
        module = importlib.import_module(f"prunegym.scripts.{verb.replace('-', '_')}")
        module.run(argv)


def _warnings() -> logging.Handler:
    """Return a handler that writes warnings to standard error, what they quote fit for a terminal."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable())
    return handler


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return printable(text) if record.name.startswith("prunegym.") else text


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _failures_told_once() -> Iterator[None]:
    """Leave out the stack trace of a thread that keeps its exception for another, as TensorBoard's writer."""
    former = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        if getattr(args.thread, "exception", None) is not args.exc_value:
            former(args)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = former


def _complain(error: Exception, code: int) -> int:
    failure = machine_failure(error)  # also where it passed for a fault of the user's
    line = one_line(error) if failure is None else machine_failure_line(failure)
    if len(line) > LONGEST_LINE:  # a message may quote what a damaged file holds; the way out is at its end
        half = (LONGEST_LINE - len(LEFT_OUT)) // 2
        line = f"{line[:half]}{LEFT_OUT}{line[-half:]}"
    print(f"prunegym: {line}", file=standard_error())
    return code


if __name__ == "__main__":
    sys.exit(main())
