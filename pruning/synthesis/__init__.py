"""Calibration inputs made from a network's weights alone."""

from pruning.synthesis import distilled, noise
from pruning.synthesis.records import SYNTHESES, Synthesis
from pruning.synthesis.splits import SyntheticSplits, answered

__all__ = ["SYNTHESES", "Synthesis", "SyntheticSplits", "answered", "distilled", "noise"]
