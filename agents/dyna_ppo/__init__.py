"""The default algorithm, DynaPPO: PPO that also learns from predicted losses between evaluations."""
