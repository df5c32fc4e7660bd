"""Files, object stores, tar shards and manifests."""
