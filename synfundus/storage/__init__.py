"""Files, object stores, on-disk contracts, tar shards."""
