"""Runtime pruning: gates that skip units per input."""
