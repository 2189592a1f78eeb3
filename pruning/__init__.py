"""Apply pruning plans to PyTorch networks, with data if there is some, and price them."""
