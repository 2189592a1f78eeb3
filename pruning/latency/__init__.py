"""The latency of any plan on this device, predicted from a table that is measured once."""

from prunegym.pruning.latency.cache import cached_table, latency_table
from prunegym.pruning.latency.prices import LatencyPrices
from prunegym.pruning.latency.records import LatencyTable, LayerTimes, WholeFit

__all__ = ["LatencyPrices", "LatencyTable", "LayerTimes", "WholeFit", "cached_table", "latency_table"]
