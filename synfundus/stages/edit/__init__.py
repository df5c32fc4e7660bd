"""The verb `edit`."""
