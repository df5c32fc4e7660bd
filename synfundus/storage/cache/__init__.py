"""Local copies of remote shards."""
