"""The verb `train-vae`."""
