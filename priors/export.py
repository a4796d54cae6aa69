"""Writes the averaged weights of the training runs as the embedded model directories, in fp16.

python -m recapture.priors.export --vae RUN --unet RUN --scaling 1.2 --out engine/weights/tiny
python -m recapture.priors.export --depth RUN --out engine/weights/depth
python -m recapture.priors.export --depth RUN --blend engine/weights/depth --share 0.5 --out engine/weights/depth
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from torch import nn
from transformers import CLIPImageProcessor

from ..engine.geometry.depth_network import DepthNet
from .latents import load_vae
from .train_unet import PIXEL_MEAN, PIXEL_STD, UNET_CONFIG, VideoPrior


def averaged(module: nn.Module, run: Path | None) -> nn.Module:
    """`module` with the averaged weights of a run; as it is without one."""
    if run is not None:
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        module.load_state_dict(state["module"] | state["average"])
    return module.eval()


def guided(unet_run: Path) -> bool:
    """Whether a run trained the kind that also takes the anchor."""
    weight = torch.load(unet_run / "checkpoint.pt", weights_only=True)["module"]["unet.conv_in.weight"]
    return weight.shape[1] > UNET_CONFIG["in_channels"]


def export_video(vae_run: Path, unet_run: Path | None, scaling: float, out: Path) -> None:
    """A `StableVideoDiffusionPipeline` directory; `unet_run` None writes an untrained UNet (for trying the loaders)."""
    vae = load_vae(vae_run)
    vae.register_to_config(scaling_factor=scaling)
    prior = averaged(VideoPrior(guided=unet_run is not None and guided(unet_run)), unet_run)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": 224},
        crop_size={"height": 224, "width": 224},
        do_center_crop=True,
        do_resize=True,
        do_rescale=True,
        do_normalize=True,
        do_convert_rgb=True,
        resample=3,
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
    )
    pipeline = StableVideoDiffusionPipeline(
        vae=vae.half(),
        image_encoder=prior.image_encoder.half(),
        unet=prior.unet.half(),
        scheduler=scheduler,
        feature_extractor=processor,
    )
    pipeline.save_pretrained(out)
    # Without torchvision the processor's class carries a suffix that only the newest transformers knows.
    index = out / "model_index.json"
    index.write_text(index.read_text().replace("CLIPImageProcessorPil", "CLIPImageProcessor"))
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def export_depth(run: Path, out: Path, blend: Path | None = None, share: float = 1.0) -> None:
    """Writes a depth directory; of `share` the run's weights and of the rest those of the directory `blend`.

    Weights between a network and itself trained further on other pictures keep much of what each knows (WiSE-FT,
    Wortsman et al. 2022).
    """
    net = averaged(DepthNet(), run)
    if blend is not None:
        other = DepthNet.from_pretrained(blend).state_dict()
        net.load_state_dict(
            {k: torch.lerp(other[k], v, share) if v.is_floating_point() else v for k, v in net.state_dict().items()}
        )
    net.half().save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, help="run folder of train_vae.py")
    parser.add_argument("--unet", type=Path, help="run folder of train_unet.py")
    parser.add_argument("--depth", type=Path, help="run folder of train_depth.py")
    parser.add_argument("--blend", type=Path, help="depth directory that the run began from, averaged with its weights")
    parser.add_argument("--share", type=float, default=0.5, help="the run's share of the blend, 0 to 1")
    parser.add_argument("--scaling", type=float, default=1.0, help="1 / standard deviation, printed by latents.py")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.depth is not None:
        export_depth(args.depth, args.out, args.blend, args.share)
    if args.vae is not None:
        export_video(args.vae, args.unet, args.scaling, args.out)


if __name__ == "__main__":
    main()
