"""The verb `plot`."""
