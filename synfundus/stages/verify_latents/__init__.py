"""The verb `verify-latents`."""
