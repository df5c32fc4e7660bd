"""The verb `progress`."""
