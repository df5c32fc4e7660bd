"""Attention backends, U-Net, latent codec, label conditioner."""
