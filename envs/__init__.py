"""Pruning decisions as Gymnasium environments."""
