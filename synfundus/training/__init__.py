"""The training loop (when), the step (what), EMA, checkpoints, hooks."""
