"""The verb `phantoms`."""
