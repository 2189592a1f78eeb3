"""Score a group's units; larger means keep. A registry: add one function to add a criterion."""

from prunegym.pruning.criteria import elimination, filters
from prunegym.pruning.criteria.records import (
    CRITERIA,
    Criterion,
    per_unit,
    reading,
    select,
    statistics_of,
    writer_rows,
)

__all__ = [
    "CRITERIA",
    "Criterion",
    "elimination",
    "filters",
    "per_unit",
    "reading",
    "select",
    "statistics_of",
    "writer_rows",
]
