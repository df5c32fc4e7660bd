"""One script a claim: a ratio against a named reference, measured in the same run."""
