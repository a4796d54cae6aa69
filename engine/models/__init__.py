"""Networks: video models in the layout of Stable Video Diffusion, multiview models, adapters and what is done to layers."""
