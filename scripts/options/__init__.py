"""Flags, and the frozen records that they become: what a verb works with.

Nothing beyond this package knows `argparse`. The shared flags lie in `network`, `pruning`, `learning` and
`output`; each verb has a module with its own ones, its record and `parse`, which returns that record.
"""
