"""Learn pruning decisions: Stable-Baselines3 algorithms and search baselines over one environment."""
