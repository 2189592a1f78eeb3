"""Score a group's units; larger means keep. A registry: add one function to add a criterion."""

from pruning.criteria import elimination, filters
from pruning.criteria.records import CRITERIA, Criterion, per_unit, select, writer_rows

__all__ = ["CRITERIA", "Criterion", "elimination", "filters", "per_unit", "select", "writer_rows"]
