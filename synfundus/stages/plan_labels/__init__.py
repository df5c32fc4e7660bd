"""The verb `plan-labels`."""
