"""Which files make a model: of a repository on a hub, of a directory here."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import ModelError

COMPONENTS = ("unet", "vae", "image_encoder", "scheduler", "feature_extractor")
KINDS = ("depth_anything", "depth_pro", "zoedepth")
"""Model types of transformers that estimate depth here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which files make a model of one kind, and how such a repository is told from others.

    Attributes:
        marker: the file at the top whose `field` holds one of `values`.
        configs: config file by folder; "" is the top.
        networks: folders that hold weights.
        variant: precision to take where a repository holds several; None takes the plain files.
    """

    kind: Literal["video", "depth"]
    marker: str
    field: str
    values: tuple[str, ...]
    configs: Mapping[str, tuple[str, ...]]
    networks: tuple[str, ...]
    variant: str | None

    def choose(self, names: Collection[str]) -> list[str]:
        """The files to fetch out of a repository's: one precision, and what says its license.

        Raises:
            ModelError: the repository lacks a file.
        """
        chosen = [self.marker]
        for folder, files in self.configs.items():
            chosen += [_join(folder, file) for file in files]
        lacking = sorted(set(chosen) - set(names))
        for folder in self.networks:
            here = [name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == folder]
            weights = _one_precision(here, self.variant)
            lacking += [] if weights else [_join(folder, "*.safetensors")]
            chosen += [_join(folder, file) for file in weights]
        if lacking:
            raise ModelError(f"the repository lacks {', '.join(lacking)}, which a {self.kind} model has")
        return [*dict.fromkeys(chosen), *(name for name in names if re.match(r"README\.md$|LICENSE", name))]

    def lacking(self, folder: Path) -> list[str]:
        """What a directory lacks of a whole model; in the hub's cache a file is there only when it is complete."""
        lacking = [] if (folder / self.marker).is_file() else [self.marker]
        for part, files in self.configs.items():
            lacking += [_join(part, file) for file in files if not (folder / part / file).is_file()]
        for part in self.networks:
            found = {path.name for path in (folder / part).glob("*.safetensors") if path.is_file()}
            named = {
                shard
                for index in (folder / part).glob("*.safetensors.index*.json")
                for shard in json.loads(index.read_text())["weight_map"].values()
            }
            lacking += [_join(part, file) for file in sorted(named - found)]
            lacking += [] if found else [_join(part, "*.safetensors")]
        return lacking

    def is_of(self, marker: Path) -> bool:
        """Whether a marker file says that its directory is of this kind."""
        try:
            return json.loads(marker.read_text()).get(self.field) in self.values
        except (OSError, ValueError, AttributeError):
            return False


VIDEO = Layout(
    kind="video",
    marker="model_index.json",
    field="_class_name",
    values=("StableVideoDiffusionPipeline",),
    configs={
        **{part: ("config.json",) for part in ("unet", "vae", "image_encoder")},
        "scheduler": ("scheduler_config.json",),
        "feature_extractor": ("preprocessor_config.json",),
    },
    networks=("unet", "vae", "image_encoder"),
    variant="fp16",
)
DEPTH = Layout(
    kind="depth",
    marker="config.json",
    field="model_type",
    values=KINDS,
    configs={"": ("preprocessor_config.json",)},
    networks=("",),
    variant=None,
)


def _join(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _one_precision(files: list[str], variant: str | None) -> list[str]:
    """Weights of one precision among a folder's files: the variant's if it is there, one file rather than pieces."""
    weights = [file for file in files if re.search(r"\.safetensors(\.index(\.\w+)?\.json)?$", file)]
    chosen = [file for file in weights if variant and re.search(rf"\.{variant}\b", file)]
    if not any(file.endswith(".safetensors") for file in chosen):
        plain = r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
        chosen = [file for file in weights if re.fullmatch(plain, file)]
    whole = [file for file in chosen if file.endswith(".safetensors") and "-of-" not in file]
    return sorted(whole or chosen)
