"""Change the shape of weights: cut channels, check cuts, and rescale layers without changing the network."""
