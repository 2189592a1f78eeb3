"""What the kept channels do for the lost ones: one module per method, each in the registry."""

from prunegym.pruning.compensation import (
    distillation,
    folding,
    layerwise_sgd,
    lbyl,
    least_squares,
    merging,
    progressive,
)
from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut

__all__ = [
    "COMPENSATIONS",
    "Compensation",
    "PlannedCut",
    "distillation",
    "folding",
    "layerwise_sgd",
    "lbyl",
    "least_squares",
    "merging",
    "progressive",
]
