"""Shard sets of images and latents: who reads which sample when, and what became of it."""
