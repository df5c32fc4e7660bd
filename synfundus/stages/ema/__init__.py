"""The verb `ema`."""
