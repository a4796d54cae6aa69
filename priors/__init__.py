"""Recipes that train the embedded weights: scenes, VAE, video UNet, depth."""
