"""Judging generated images against real ones."""
