"""The project's own numerics: point splat, latent mask, masked loss."""
