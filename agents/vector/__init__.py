"""Vectors of environments in lockstep: in this process, in forked processes, or on a Ray cluster."""
