"""The verb `forget`."""
