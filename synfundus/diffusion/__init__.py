"""The mathematics of the diffusion model; it takes callables and imports no network."""
