"""Networks by name, and how their trained weights are read."""
