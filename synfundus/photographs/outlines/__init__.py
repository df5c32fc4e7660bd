"""Outlines of a field of view beside the round rim: straight edges, windows of slides."""
