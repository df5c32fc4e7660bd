"""What fits into memory: worked out beforehand, measured at start."""
