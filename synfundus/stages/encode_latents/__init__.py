"""The verb `encode-latents`."""
