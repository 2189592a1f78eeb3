"""Named errors for the user's mistakes; each message is one line that says the way out."""

from __future__ import annotations


class PruningError(Exception):
    """Base of every error this project raises on purpose."""


class UnknownNameError(PruningError):
    """A registry, a network or a layer pattern was asked for a name it does not hold."""


class UntraceableModelError(PruningError):
    """The model cannot be traced at all, so nothing in it can be pruned safely."""


class WeightsError(PruningError):
    """A weights file is missing, damaged, or does not fit the network."""


class DataError(PruningError):
    """Images or labels are missing, damaged, of the wrong shape or type, or out of range."""


class PlanError(PruningError):
    """A pruning plan is malformed or names what the network does not have."""


class BudgetError(PruningError):
    """A budget is malformed."""


class ImpossibleBudgetError(BudgetError):
    """No plan reaches the budget; the message says the smallest that can be reached."""


class ExportError(PruningError):
    """A network cannot be written for another runtime, or what was written does not compute the same."""


class UserCodeError(PruningError):
    """A user's network or function failed where nothing can make up for it."""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, fit for a terminal."""
    return printable(" ".join(message_of(error).split()))


def message_of(error: BaseException) -> str:
    """Return the message of an error as it is; a user's error may be unable to say it."""
    try:
        return str(error)
    except Exception:
        return "it has no message that can be shown"


def printable(text: object) -> str:
    r"""Return text in which control characters and whatever else cannot be seen are escaped.

    Names of files and modules are a stranger's, and a terminal would obey what they hold.

    Example:
        >>> printable("layer\x1b[31m")
        'layer\\x1b[31m'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text)
    )
