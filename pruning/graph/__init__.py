"""Trace a model and find its groups of coupled channels, which are removed together or not at all."""

from prunegym.pruning.graph.grouping import find_groups
from prunegym.pruning.graph.records import ChannelGraph, ChannelGroup, LayerShape, Member, ShapeConstant

__all__ = ["ChannelGraph", "ChannelGroup", "LayerShape", "Member", "ShapeConstant", "find_groups"]
