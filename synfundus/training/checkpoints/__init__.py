"""Checkpoints of any number of ranks: committed in two phases, found again, resliced."""
