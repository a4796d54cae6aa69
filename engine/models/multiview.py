"""Novel views of single frames: a latent diffusion UNet conditioned on the source view, both cameras and the point anchor.

After CAT3D (arXiv 2405.10314): cameras are ray maps relative to the source camera, and attention runs across the views.
Two views, the given one and the asked one, go through the network as two pictures. Both have the same channels:

    noise (the asked view's noisy latents; zeros in the given one), known latents (the frame itself; of the asked view
    what the splatted points show), which cells of these are known, and the ray map.

Legend: B requests, C latent channels, h and w latent cells.
"""

import hashlib
import importlib
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.latent_mask import latent_mask
from ..anchor.render import to_uint8
from ..cameras import CameraPath
from ..cameras.rigid import rotation_angle_deg
from ..config import AnchorConfig
from ..diffusion.edm import clean_estimate, euler_step, karras_sigmas, network_input, seeded_noise
from ..diffusion.encoding import to_working, working_anchor
from ..errors import ModelError
from ..hub import EMBEDDED, weights_digest
from ..imaging.composite import composite, to_clip_size
from ..imaging.push_pull import push_pull
from .video import ENCODER_PARTS, Codec, load_network, loading

RAY_CHANNELS = 6
SIGMA_MAX, SIGMA_MIN = 80.0, 0.02
UNCERTAIN = 0.04
"""Mean difference over the channels, of a range of 1, from which on a pixel is not confident."""
_DOUBT_PX = 9
FEATHER_PX = 8.0
WIDE_TURN_DEG, WIDE_HOLES = 45.0, 0.25
"""From this turn and hole share on `auto` takes the multiview route: below it costs more than it gains (docs/multiview.md)."""


def input_channels(latent_channels: int) -> int:
    """Noise, known latents, their mask, rays."""
    return 2 * latent_channels + 1 + RAY_CHANNELS


def ray_map(K_px: np.ndarray, c2w: np.ndarray, size_px: tuple[int, int], cells: tuple[int, int], unit: float) -> Tensor:
    """Pluecker coordinates (d, o x d) of the ray through each cell's center, float32 [6, h, w].

    Args:
        K_px: [3, 3] in pixels of a picture of `size_px` (height, width).
        c2w: [4, 4], OpenCV axes, in the source camera's space.
        unit: length that counts as 1, so that a scene's scale does not matter: the clip's median depth.
    """
    height, width = size_px
    v, u = np.meshgrid(
        (np.arange(cells[0]) + 0.5) * height / cells[0], (np.arange(cells[1]) + 0.5) * width / cells[1], indexing="ij"
    )
    directions = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K_px).T @ c2w[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    moments = np.cross(np.broadcast_to(c2w[:3, 3] / unit, directions.shape), directions)
    return torch.from_numpy(np.concatenate([directions, moments], -1)).permute(2, 0, 1).float()


class AcrossViews:
    """Self-attention over the tokens of both views of a request; as an attention processor of diffusers."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **more: Any
    ) -> Tensor:
        if encoder_hidden_states is not None:
            return self.inner(attn, hidden_states, encoder_hidden_states, **more)
        views, tokens, width = hidden_states.shape
        return self.inner(attn, hidden_states.reshape(views // 2, 2 * tokens, width), None, **more).reshape(
            views, tokens, width
        )


def attend_across_views(unet: Any) -> None:
    """Makes the self-attention of a UNet2DConditionModel cross between the two views of each request."""
    unet.set_attn_processor({name: AcrossViews(inner) for name, inner in unet.attn_processors.items()})


def predict(
    unet: Any,
    noisy: Tensor,
    sigma: Tensor,
    source: Tensor,
    known: Tensor,
    mask: Tensor,
    rays: Tensor,
    image_embeds: Tensor,
) -> Tensor:
    """The network's output F for the asked view, fp32 [B, C, h, w]; EDM scaling and noise label as in SVD.

    Args:
        noisy: scaled noisy latents [B, C, h, w].
        sigma: [B].
        source: scaled latents of the given view [B, C, h, w]; zeros tell nothing.
        known: scaled latents of the point anchor [B, C, h, w], zeros where there is none.
        mask: which of its cells are known [B, h, w].
        rays: [B, 2, 6, h, w], of the given and the asked view.
        image_embeds: image token of the given view [B, 1, D].
    """
    scaled, label = network_input(noisy, sigma)
    source_known = (source != 0).any(1, keepdim=True).to(noisy)  # a source that was dropped is not known either
    given = torch.cat([torch.zeros_like(scaled), source, source_known, rays[:, 0]], 1)
    asked = torch.cat([scaled, known, mask[:, None], rays[:, 1]], 1)
    inputs = torch.stack([given, asked], 1).flatten(0, 1)
    output = unet(
        inputs.to(unet.dtype), label.repeat_interleave(2), image_embeds.repeat_interleave(2, 0).to(unet.dtype)
    ).sample
    return output.float().unflatten(0, (-1, 2))[:, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class NovelView:
    """A request to a multiview model: one frame, from another camera.

    Attributes:
        source: the frame, float [3, H, W] in 0..1.
        source_K_px: [3, 3] in pixels of the frame.
        c2w: [4, 4] of the asked camera in the source camera's space, OpenCV axes.
        K_px: [3, 3] of the asked camera, in pixels of its picture (h, w).
        unit: the clip's median depth, in the units of `c2w`.
        points: the frame splatted into the asked camera, float [3, h, w].
        covered: pixels that a point covers, bool [h, w].
    """

    source: Tensor
    source_K_px: np.ndarray  # noqa: N815
    c2w: np.ndarray
    K_px: np.ndarray
    unit: float
    points: Tensor
    covered: Tensor


class MultiviewModel(Protocol):
    """Draws single frames from other cameras."""

    def __call__(self, view: NovelView, seed: int) -> Tensor:
        """The asked view, float [3, h, w] in 0..1; the same for the same seed, on every machine of one kind."""
        ...


class MultiviewAdapter(MultiviewModel, Protocol):
    """Another model behind a class with these members."""

    license: str
    noncommercial: bool
    """True: used only where `allow_noncommercial` says that the user may."""
    version: str
    """Names the weights: results are kept under it, so other weights need another one."""

    def __init__(self, device: torch.device) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiviewSource:
    """A multiview model that was found, not yet loaded."""

    name: str
    license: str
    noncommercial: bool
    digest: str
    folder: Path | None
    """Absolute, for workers elsewhere; None is an adapter, which is imported by its name."""


def find_multiview_model(name: str, *, allow_noncommercial: bool = False) -> MultiviewSource:
    """`embedded`, a directory with `multiview.json` and `unet/`, or an adapter class as `package.module:Class`.

    Raises:
        ModelError: it does not exist, or its license forbids commercial use and `allow_noncommercial` is not set.
    """
    module, _, attribute = name.partition(":")
    if attribute and not Path(name).exists():
        kind = _adapter(module, attribute, name)
        digest = hashlib.sha256(f"{name} {kind.version}".encode()).hexdigest()
        found = MultiviewSource(
            name=name, license=kind.license, noncommercial=kind.noncommercial, digest=digest, folder=None
        )
    else:
        folder = EMBEDDED / "multiview" if name == "embedded" else Path(name).absolute()
        about = _about(folder, name)
        parts = weights_digest(folder, ("unet",)), weights_digest(_encoder(folder, about), ENCODER_PARTS)
        digest = hashlib.sha256(json.dumps([*parts, about["steps"], about["guidance"]]).encode()).hexdigest()
        found = MultiviewSource(
            name=name, license=about["license"], noncommercial=about["noncommercial"], digest=digest, folder=folder
        )
    if found.noncommercial and not allow_noncommercial:
        raise ModelError(
            f"{name} is licensed for non-commercial use only ({found.license}); "
            "if that applies to you, set `anchor.allow_noncommercial`",
            param="anchor.multiview",
            code="model_noncommercial",
        )
    return found


def multiview_source(options: AnchorConfig) -> MultiviewSource | None:
    """The multiview model that a run with these options may use; None where its anchors are of points alone.

    Raises:
        ModelError: as `find_multiview_model`.
    """
    if options.route == "points":
        return None
    return find_multiview_model(options.multiview, allow_noncommercial=options.allow_noncommercial)


def load_multiview_model(source: MultiviewSource, device: torch.device) -> MultiviewModel:
    """Load what `find_multiview_model` found. Raises ModelError where it cannot be loaded."""
    if source.folder is not None:
        return DirectoryMultiview(source.folder, device)
    module, _, attribute = source.name.partition(":")
    kind = _adapter(module, attribute, source.name)
    with loading(Path(source.name), "anchor.multiview"):
        return kind(device)


def _adapter(module: str, attribute: str, name: str) -> type[MultiviewAdapter]:
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever stands in the user's module
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"the adapter {name} cannot be imported ({reason})", param="anchor.multiview") from None
    missing = [member for member in ("license", "noncommercial", "version") if not hasattr(kind, member)]
    if missing or not callable(kind):
        raise ModelError(f"the adapter {name} does not say its {', '.join(missing)}", param="anchor.multiview")
    return cast("type[MultiviewAdapter]", kind)


def _about(folder: Path, name: str) -> dict[str, Any]:
    needed = {"encoder": str, "license": str, "noncommercial": bool, "steps": int, "guidance": (int, float)}
    try:
        about = json.loads((folder / "multiview.json").read_text())
        if "licence" in about:  # as the version before spelled it
            about["license"] = about.pop("licence")
        _ = about["steps"], (folder / "unet" / "config.json").stat()
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"no multiview model {name!r}; give embedded, a directory with multiview.json and unet/, or an adapter "
            "as package.module:Class",
            param="anchor.multiview",
        ) from None
    for key, kind in needed.items():
        if not isinstance(about.get(key), kind):
            raise ModelError(
                f"{folder / 'multiview.json'} does not give {key!r} as it should", param="anchor.multiview"
            )
    if about["steps"] < 1:
        raise ModelError(f"{folder / 'multiview.json'} asks for {about['steps']} steps", param="anchor.multiview")
    return about


def _encoder(folder: Path, about: dict[str, Any]) -> Path:
    """The directory with the VAE and the image encoder, which the model may share with a video model."""
    encoder = (folder / about["encoder"]).resolve()
    missing = [part for part in ENCODER_PARTS if not (encoder / part).is_dir()]
    if missing:
        raise ModelError(f"{encoder}, the encoder of {folder}, lacks {', '.join(missing)}/", param="anchor.multiview")
    return encoder


def encoder_of(folder: Path) -> Path:
    """The encoder's directory of a multiview model's."""
    return _encoder(folder, _about(folder, str(folder)))


class DirectoryMultiview:
    """The embedded model, or another of its class from a directory."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from diffusers import UNet2DConditionModel

        about = _about(folder, str(folder))
        self.steps, self.guidance = about["steps"], float(about["guidance"])
        self.codec = Codec(_encoder(folder, about), device=device, param="anchor.multiview")
        with loading(folder, "anchor.multiview"):
            self.unet: Any = load_network(UNet2DConditionModel, folder / "unet", torch.float32)
        channels = self.codec.vae.config.latent_channels
        asked, made = input_channels(channels), channels
        if (self.unet.config.in_channels, self.unet.config.out_channels) != (asked, made):
            raise ModelError(
                f"the UNet in {folder} takes {self.unet.config.in_channels} channels and gives "
                f"{self.unet.config.out_channels}; with this VAE {asked} and {made} are needed",
                param="anchor.multiview",
            )
        attend_across_views(self.unet)
        self.unet.requires_grad_(False).eval().to(device)

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) near the area it was trained at, in whole multiples of what VAE and UNet need."""
        cell = 2 ** (len(self.codec.vae.config.block_out_channels) - 1)
        multiple = cell * 2 ** (len(self.unet.config.block_out_channels) - 1)
        scale = self.unet.config.sample_size * cell / (width * height) ** 0.5
        rows, columns = (max(1, round(side * scale / multiple)) * multiple for side in (height, width))
        return rows, columns

    @torch.no_grad()
    def __call__(self, view: NovelView, seed: int) -> Tensor:
        device, (h, w) = self.codec.device, view.covered.shape
        size = self.working_size(w, h)
        filled, real = working_anchor(to_uint8(view.points[None]), view.covered.cpu().numpy()[None], size)
        frame = to_working(view.source[None].to(device), size).clamp(0, 1)
        latents = self.codec.encode(torch.cat([frame, filled.to(device)])) * self.codec.scaling
        if not real.any():
            latents[1] = 0  # it was trained to read zeros, not a black picture, where no point is seen
        cells, (source_h, source_w) = (latents.shape[-2], latents.shape[-1]), view.source.shape[1:]
        cell = size[0] // cells[0], size[1] // cells[1]
        mask = latent_mask(real, cell).to(device)
        given = ray_map(view.source_K_px, np.eye(4), (source_h, source_w), cells, view.unit)
        asked = ray_map(view.K_px, view.c2w, (h, w), cells, view.unit)
        made = self._denoise(
            latents[:1], latents[1:], mask, torch.stack([given, asked])[None].to(device), self.codec.embed(frame), seed
        )
        return to_clip_size(self.codec.decode(made), (h, w))[0]

    def _denoise(
        self, source: Tensor, known: Tensor, mask: Tensor, rays: Tensor, image_embeds: Tensor, seed: int
    ) -> Tensor:
        """Scaled latents [1, C, h, w] after Euler steps of the EDM ODE; guidance hides the source from its second half."""
        sigmas = karras_sigmas(self.steps, SIGMA_MAX, SIGMA_MIN)
        latents = sigmas[0] * seeded_noise(tuple(source.shape), seed, device=source.device)
        guided = self.guidance != 1
        unet_inputs: list[Tensor] = [source, known, mask, rays, image_embeds]
        if guided:
            blind = [torch.zeros_like(source), known, mask, rays, torch.zeros_like(image_embeds)]
            unet_inputs = [torch.cat(pair) for pair in zip(unet_inputs, blind, strict=True)]
        for sigma, below in pairwise(sigmas):
            noisy = torch.cat([latents] * len(unet_inputs[0]))
            output = predict(self.unet, noisy, noisy.new_full((len(noisy),), sigma), *unet_inputs)
            F_hat = output[1:] + self.guidance * (output[:1] - output[1:]) if guided else output
            latents = euler_step(latents, clean_estimate(latents, F_hat, sigma), sigma, below)
        return latents


def synthesize(model: MultiviewModel, view: NovelView, seed: int) -> tuple[Tensor, Tensor]:
    """The asked view [3, h, w], and how uncertain each pixel is, [h, w] in levels of a range of 1.

    Doubtful is what two seeds do not agree on, and what lies where the picture misses the real pixels around: how far it
    is from the splatted points is carried from the covered pixels into the holes.
    """
    first, second = (model(view, seed + k).cpu() for k in (0, 1))
    apart = (first - second).abs().mean(0)
    missed = push_pull((first - view.points).abs().mean(0)[None, None], view.covered[None])[0, 0]
    return first, F.avg_pool2d((apart + missed)[None], _DOUBT_PX, 1, _DOUBT_PX // 2, count_include_pad=False)[0]


def synthesized_anchor(model: MultiviewModel, view: NovelView, seed: int) -> dict[str, np.ndarray]:
    """`color` uint8 [h, w, 3] and `mask` bool [h, w] of the anchor: the points, and around them what is synthesized.

    Real pixels stay as they are, and with them the mask tells what is synthesized and confident. What is not confident is still
    the best guess at hand, so it is left in place of black. The same seed for all frames of a clip is the same noise.
    """
    mask = view.covered.numpy()
    if mask.all():
        return {"color": to_uint8(view.points[None])[0], "validity_mask": mask}
    picture, uncertainty = synthesize(model, view, seed)
    whole = composite(picture[None], view.points[None], view.covered.numpy()[None], feather_px=FEATHER_PX)
    return {"color": to_uint8(whole)[0], "validity_mask": mask | (uncertainty < UNCERTAIN).numpy()}


def chosen_route(path: CameraPath, hole_share: float) -> tuple[str, str]:
    """`points` or `multiview` for this path, and why in words: by its largest turn and the point anchor's hole share."""
    turn = float(rotation_angle_deg(path.c2w[:, :3, :3]).max())
    wide = turn >= WIDE_TURN_DEG and hole_share >= WIDE_HOLES
    bounds = f"{WIDE_TURN_DEG:.0f} degrees and {100 * WIDE_HOLES:.0f} % holes"
    why = f"the path turns {turn:.0f} degrees and leaves {100 * hole_share:.0f} % holes; multiview is for {bounds} or more"
    return ("multiview" if wide else "points"), why
