"""Checkpoints: committed in two phases, found and verified, resumed on any number of ranks."""
