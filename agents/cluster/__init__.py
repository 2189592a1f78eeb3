"""Environments on the machines of a Ray cluster, for networks whose evaluation takes minutes."""

from agents.cluster.connection import connected
from agents.cluster.workers import ClusterWorkers

__all__ = ["ClusterWorkers", "connected"]
