"""Named errors for the user's mistakes in learning; each message is one line that says the way out."""


class AgentError(Exception):
    """Base of every error this package raises on purpose."""


class UnknownAlgorithmError(AgentError):
    """No learning algorithm has that name."""


class HyperparameterError(AgentError):
    """A hyper-parameter is unknown, or its value of the wrong kind."""


class CheckpointError(AgentError):
    """A checkpoint is damaged, or belongs to another run."""


class PolicyError(AgentError):
    """A policy folder is missing, damaged, of another version, or made for other observations."""


def one_line(error: Exception) -> str:
    """Return what an error says, without its line breaks."""
    return " ".join(str(error).split())
