"""The mathematics of the diffusion model; takes callables, imports no network."""
