"""The networks: U-Net, autoencoder, label conditioner, discriminator; attention kernels, compilation, counting."""
