"""Procedural fundus photographs: the parts one is drawn from."""
