"""Calibration inputs made from a network's weights alone."""

from prunegym.pruning.calibration.synthesis import distilled, noise
from prunegym.pruning.calibration.synthesis.records import SYNTHESES, Synthesis
from prunegym.pruning.calibration.synthesis.splits import SyntheticSplits, answered

__all__ = ["SYNTHESES", "Synthesis", "SyntheticSplits", "answered", "distilled", "noise"]
