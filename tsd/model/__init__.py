"""A base model from its folder: VAE, denoiser, noise process, adapters, sampler."""
