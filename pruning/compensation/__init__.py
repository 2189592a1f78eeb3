"""What the kept channels do for the lost ones: one module per method, each in the registry."""

from pruning.compensation import (
    distillation,
    folding,
    layerwise_sgd,
    lbyl,
    least_squares,
    merging,
    progressive,
)
from pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut

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
