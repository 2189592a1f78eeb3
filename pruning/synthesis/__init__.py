"""Calibration inputs made from a network's weights alone."""

from pruning.synthesis import distilled, noise
from pruning.synthesis.records import SYNTHESES, Synthesis
from pruning.synthesis.splits import SyntheticSplits

__all__ = ["SYNTHESES", "Synthesis", "SyntheticSplits", "distilled", "noise"]
