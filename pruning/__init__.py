"""Carry pruning decisions out on PyTorch networks, with data if there is some, and price them."""
