"""Photographs: label tables, decoding, field of view, crops, burned-in text, near-duplicates."""
