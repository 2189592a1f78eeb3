"""Named errors for the user's mistakes in learning; each message is one line that says the way out."""


class AgentError(Exception):
    """Base of every error this package raises on purpose."""


class HyperparameterError(AgentError):
    """A hyper-parameter is unknown, or its value of the wrong kind."""


class CheckpointError(AgentError):
    """A checkpoint is damaged, or belongs to another run."""


class PolicyError(AgentError):
    """A policy folder is missing, damaged, of another version, or made for other observations."""
