"""What one stage leaves and another opens: models, autoencoders, runs, latent sets, sample sets. No configuration."""
