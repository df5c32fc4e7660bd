"""The verb `sample`."""
