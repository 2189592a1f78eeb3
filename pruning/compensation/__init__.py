"""What the kept channels do for the lost ones: one module per method, each in the registry."""

from pruning.compensation import least_squares
from pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut

__all__ = ["COMPENSATIONS", "Compensation", "PlannedCut", "least_squares"]
