"""Exceptions for mistakes of the user in learning; each message is one line that says what to do about it."""


class AgentError(Exception):
    """Base of every error this package raises on purpose."""


class HyperparameterError(AgentError):
    """A hyper-parameter is unknown, or its value is of the wrong type."""


class CheckpointError(AgentError):
    """A checkpoint is damaged, or belongs to another run."""


class PolicyError(AgentError):
    """A policy folder is missing or damaged, has another version, or was made for other observations."""
