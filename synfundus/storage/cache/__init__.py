"""Local copies of remote objects."""
