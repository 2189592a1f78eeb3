"""Train Stable-Baselines3 algorithms on pruning environments, with checkpoints and logs."""
