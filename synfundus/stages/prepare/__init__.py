"""The verb `prepare`."""
