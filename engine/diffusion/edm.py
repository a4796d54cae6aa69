"""EDM (Karras et al. 2022) as Stable Video Diffusion uses it: v-prediction, data of standard deviation 1.

With the network's output F at noise level s: clean = c_skip latents + c_out F, c_skip = 1/(s^2+1), c_out = -s/sqrt(s^2+1).
`kernels.masked_loss` has the target that F is trained on.
"""

import torch
from torch import Tensor


def karras_sigmas(steps: int, sigma_max: float, sigma_min: float, rho: float = 7.0) -> list[float]:
    """`steps` noise levels from sigma_max to sigma_min and a final 0 (equation 5)."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(high + i / max(1, steps - 1) * (low - high)) ** rho for i in range(steps)] + [0.0]


def training_sigmas(count: int, mean: float, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Noise levels [count] to train at: their logarithms are normal (table 1)."""
    return (torch.randn(count, generator=generator) * std + mean).exp()


def seeded_noise(shape: tuple[int, ...], seed: int, *, device: torch.device) -> Tensor:
    """Standard normal noise drawn on the CPU, so that every device starts from the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def network_input(noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """What the network takes for latents [B, ...] at noise levels [B]: the latents scaled by c_in, and its label [B]."""
    s = sigma.view(-1, *[1] * (noisy.dim() - 1)).to(noisy)
    return noisy / torch.sqrt(s * s + 1), 0.25 * torch.log(sigma)


def clean_estimate(latents: Tensor, predicted: Tensor, sigma: float) -> Tensor:
    """The latents without noise, by the network's output for them."""
    return latents / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * predicted


def euler_step(latents: Tensor, clean: Tensor, sigma: float, below: float) -> Tensor:
    """Latents at noise level `below` from those at `sigma` (algorithm 1 without its second order)."""
    return latents + (latents - clean) / sigma * (below - sigma)
