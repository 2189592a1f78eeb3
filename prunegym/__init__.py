"""Learn how much to compress where: pruning of trained CNNs as a Gymnasium environment."""
