"""The verb `gallery`."""
