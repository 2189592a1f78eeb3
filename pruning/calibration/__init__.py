"""Observe a network at work: the statistics that criteria and compensations use."""
