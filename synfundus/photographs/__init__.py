"""Photographs as patients' files are: tables, decoding, field of view, crops, text in the picture, look-alikes."""
