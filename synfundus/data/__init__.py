"""Phantoms, fundus geometry, ingestion, the reading order, image and latent readers."""
