"""Diffusion: conditioning, tuning of the adapters, sampling."""
