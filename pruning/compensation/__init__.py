"""Compensation: adjust the kept channels to make up for the removed ones; one module per method."""

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
