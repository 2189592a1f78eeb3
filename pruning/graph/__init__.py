"""Trace a model and tie its channels into groups that live and die together."""

from prunegym.pruning.graph.grouping import find_groups
from prunegym.pruning.graph.records import ChannelGraph, ChannelGroup, LayerShape, Member, ShapeConstant

__all__ = ["ChannelGraph", "ChannelGroup", "LayerShape", "Member", "ShapeConstant", "find_groups"]
