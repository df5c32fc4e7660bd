"""Attention backends, U-Net, latent autoencoder, label conditioner."""
