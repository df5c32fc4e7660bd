"""What fits into memory: computed beforehand, or measured at start."""
