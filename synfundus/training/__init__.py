"""The training loop (when), the training step (what), averages (EMA), checkpoints."""
