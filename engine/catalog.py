"""Models by name, and those in the hub's cache on this machine. No torch here.

`tiny` is embedded in the package, `svd` and `svd-xt` are hub repositories, anything else is a path or a hub name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from . import hub
from .errors import ModelError
from .hub import EMBEDDED
from .layout import COMPONENTS, DEPTH, KINDS, VIDEO, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model by name, before anything is loaded."""

    name: str
    source: str
    """A directory, or the name of a hub repository."""
    license: str
    about: str
    terms: str = ""
    """What the license asks of its user, where it asks something."""

    @property
    def source_name(self) -> str:
        """What an adapter's config names as its base: the hub repository, or the model's own name."""
        return (
            self.source
            if "/" in self.source and not Path(self.source).is_dir()
            else f"recapture/{Path(self.name).name}"
        )


_STABILITY_TERMS = (
    "free for research and for those who earn less than 1 million USD a year; register commercial use with Stability AI"
)
MODELS = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="tiny",
            source=str(EMBEDDED / "tiny"),
            license="Apache-2.0 (see the model card for the training data)",
            about="embedded, a few million parameters, runs on a laptop",
        ),
        ModelEntry(
            name="svd",
            source="stabilityai/stable-video-diffusion-img2vid",
            license="Stability AI Community License",
            about="Stable Video Diffusion, 14 frames at 1024x576, 1.5 B parameters",
            terms=_STABILITY_TERMS,
        ),
        ModelEntry(
            name="svd-xt",
            source="stabilityai/stable-video-diffusion-img2vid-xt",
            license="Stability AI Community License",
            about="Stable Video Diffusion XT, 25 frames at 1024x576, 1.5 B parameters",
            terms=_STABILITY_TERMS,
        ),
    )
}
"""Video models by name."""

DEPTH_MODELS = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="embedded",
            source=str(EMBEDDED / "depth"),
            license="Apache-2.0 (see the model card)",
            about="in the package, small",
        ),
        ModelEntry(
            name="depth",
            source="depth-anything/Depth-Anything-V2-Small-hf",
            license="Apache-2.0",
            about="Depth Anything V2 Small, 25 M parameters",
        ),
    )
}
"""Depth models by name, the best last."""

UNSTATED = "not stated, see the model's card"


_MULTIVIEW = ModelEntry(
    name="embedded",
    source=str(EMBEDDED / "multiview"),
    license="Apache-2.0 (see the model card)",
    about="in the package, synthesizes what no frame shows",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A model that can be named, and what of it is on this machine.

    Attributes:
        folder: its directory, None where it is not here or not whole.
        unfinished: a download of it was begun.
    """

    entry: ModelEntry
    kind: Literal["video", "depth", "multiview"]
    folder: Path | None
    unfinished: bool = False


def named(name: str) -> ModelEntry | None:
    """The hub repository behind a short name, None where it is no such name."""
    entry = MODELS.get(name) or DEPTH_MODELS.get(name)
    return None if entry is None or _is_embedded(entry) else entry


def find_model(name: str) -> tuple[ModelEntry, Path]:
    """The entry and local directory of a model, downloading a hub repository if need be.

    Raises:
        ModelError: unknown name, gated or unreachable repository, or a directory of another layout.
    """
    entry = MODELS.get(name)
    if entry is None:
        if not Path(name).is_dir() and not hub.is_hub_name(name):
            raise ModelError(
                f"no model {name!r}; give {', '.join(MODELS)}, a directory in the diffusers layout of "
                "StableVideoDiffusionPipeline, or a hub name such as owner/repository",
                param="model",
            )
        entry = ModelEntry(name=name, source=name, license=UNSTATED, about="user's model")
    folder = Path(entry.source)
    if folder.is_relative_to(EMBEDDED) and not folder.is_dir():
        raise ModelError(f"the embedded weights are not in this installation ({folder}); install the package again")
    if not folder.is_dir():
        folder = hub.fetch(entry.source, VIDEO, param="model")
    missing = [part for part in COMPONENTS if not (folder / part).is_dir()]
    if missing:
        raise ModelError(
            f"{folder} lacks {', '.join(missing)}/; a model is a directory in the diffusers layout of "
            f"StableVideoDiffusionPipeline with {', '.join(COMPONENTS)}/",
            param="model",
        )
    if entry.license == UNSTATED:
        entry = replace(entry, license=hub.license_of(folder) or UNSTATED)
    return entry, folder


def repository_folder(name: str, **choice: Any) -> str | Path:
    """The directory of a hub repository in the revision and variant that are asked for; a directory's name as it is.

    Args:
        choice: of `hub.fetch_revision`.

    Raises:
        ModelError: the hub cannot be reached, or has no such repository or revision.
    """
    entry = MODELS.get(name)
    source = name if entry is None else entry.source
    return name if Path(source).is_dir() else hub.fetch_revision(source, param="model", **choice)


def check_depth_name(name: str) -> None:
    """Refuse what names no depth model, without looking for it.

    Raises:
        ModelError: neither a name of `DEPTH_MODELS`, nor a directory, nor a possible name on the hub.
    """
    if name not in ("auto", *DEPTH_MODELS) and not Path(name).is_dir() and not hub.is_hub_name(name):
        raise ModelError(
            f"no depth model {name!r}; give auto, {', '.join(DEPTH_MODELS)}, a directory or a hub name of "
            f"{', '.join(KINDS)}",
            param="depth.model",
        )


def best_depth() -> ModelEntry:
    """The best depth model on this machine. Never asks the hub."""
    return next(entry for entry in reversed(DEPTH_MODELS.values()) if _folder(entry, DEPTH) is not None)


def holdings() -> Iterator[Holding]:
    """Every model with a name, then the others in the hub's cache that are of a kind that is understood."""
    named = ((MODELS, VIDEO), (DEPTH_MODELS, DEPTH))
    for entries, layout in named:
        for entry in entries.values():
            folder = _folder(entry, layout)
            begun = folder is None and entry.source in hub.cached_repositories()
            yield Holding(entry=entry, kind=layout.kind, folder=folder, unfinished=begun)
    yield Holding(entry=_MULTIVIEW, kind="multiview", folder=Path(_MULTIVIEW.source))
    known = {entry.source for entries, _ in named for entry in entries.values()}
    for repository in sorted(hub.cached_repositories() - known):
        for layout in (VIDEO, DEPTH):
            folder = hub.snapshot(repository, layout)
            if folder is not None and layout.is_of(folder / layout.marker):
                license = hub.license_of(folder) or UNSTATED
                entry = ModelEntry(name=repository, source=repository, license=license, about="from the hub")
                yield Holding(entry=entry, kind=layout.kind, folder=folder)


def _folder(entry: ModelEntry, layout: Layout) -> Path | None:
    return Path(entry.source) if _is_embedded(entry) else hub.snapshot(entry.source, layout)


def _is_embedded(entry: ModelEntry) -> bool:
    return Path(entry.source).is_relative_to(EMBEDDED)
