"""Models as files: the embedded ones, the hub's cache on this machine, downloads into it, digests. No torch here.

Downloads land in the cache that all programs of a user share (`HF_HOME`, `HF_HUB_CACHE`). They come from the hub that
`HF_ENDPOINT` names, with the token in `HF_TOKEN` or that `hf auth login` stored.
"""

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelError
from .layout import DEPTH, VIDEO, Layout

EMBEDDED = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a download would bring, asked of the hub and not yet begun.

    Attributes:
        sizes: bytes by file.
        missing: files that are not in the cache yet.
        license: as the repository's card has it.
        license_page: where to read it.
    """

    repository: str
    commit: str
    layout: Layout
    sizes: Mapping[str, int]
    missing: tuple[str, ...]
    license: str
    license_page: str

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes of the missing files."""
        return sum(self.sizes[name] for name in self.missing)


def is_hub_name(name: str) -> bool:
    """Whether a name can be a hub repository's, owner/repository."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith((".", "/"))


def page_of(repository: str) -> str:
    """URL of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


def cache_folder() -> Path:
    """The cache of the hub, which other programs share."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_repositories() -> set[str]:
    """Names of the model repositories of which the cache holds anything."""
    return {folder.name.removeprefix("models--").replace("--", "/") for folder in cache_folder().glob("models--*--*")}


def snapshot(repository: str, layout: Layout) -> Path | None:
    """A repository's directory in the cache if the model is whole there, else None. Never asks the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        marker = try_to_load_from_cache(repository, layout.marker)
    except HFValidationError:
        return None
    if not isinstance(marker, str):
        return None
    return None if layout.lacking(Path(marker).parent) else Path(marker).parent


def fetch(repository: str, layout: Layout, *, param: str) -> Path:
    """A repository's directory: from the cache if the model is whole there, else downloaded.

    Raises:
        ModelError: says which page to visit, or how to give a local directory to the option `param`.
    """
    found = snapshot(repository, layout)
    return found or download(look(repository, (layout,), param=param), param=param)


def fetch_revision(
    repository: str,
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    param: str | None = None,
) -> Path:
    """The directory of a repository as these arguments of diffusers' `from_pretrained` choose it.

    Args:
        variant: of the weights, such as `fp16`; None leaves the half-precision twins out.

    Raises:
        ModelError: the hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import snapshot_download

    with _explained(repository, param):
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=[
                    "*.json",
                    "*/*.json",
                    "*.md",
                    f"*/*.{variant}.safetensors" if variant else "*/*.safetensors",
                ],
                ignore_patterns=None if variant else ["*/*.fp16.safetensors"],
            )
        )


def look(repository: str, layouts: tuple[Layout, ...] = (VIDEO, DEPTH), *, param: str | None = None) -> Offer:
    """Ask the hub what a model would take, without fetching more than the small file that says its kind.

    Raises:
        ModelError: the repository is gated, unreachable or absent, or holds no model of these kinds.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with _explained(repository, param):
        info = HfApi().model_info(repository)
        assert info.sha is not None
        names = {sibling.rfilename for sibling in info.siblings or ()}
        layout = next(
            (
                layout
                for layout in layouts
                if layout.marker in names
                and layout.is_of(Path(hf_hub_download(repository, layout.marker, revision=info.sha)))
            ),
            None,
        )
        if layout is None:
            raise ModelError(
                f"{repository} holds no model that is understood: "
                + " or ".join(f"{layout.marker} with {layout.field} {', '.join(layout.values)}" for layout in layouts),
                param=param,
            )
        files = [
            hf_hub_download(repository, name, revision=info.sha, dry_run=True) for name in layout.choose(sorted(names))
        ]
    page = page_of(repository)
    text = next((name for name in sorted(names) if name.startswith("LICENSE")), None)
    return Offer(
        repository=repository,
        commit=info.sha,
        layout=layout,
        sizes={file.filename: file.file_size or 0 for file in files},
        missing=tuple(file.filename for file in files if file.will_download),
        license=_license_in(info.card_data.to_dict() if info.card_data else {}),
        license_page=page if text is None else f"{page}/blob/main/{text}",
    )


def download(offer: Offer, *, param: str | None = None, on_bytes: Callable[[str, int], None] | None = None) -> Path:
    """Fetch an offer's files into the cache; returns the model's directory there.

    A cut connection is taken up where it broke. Ended in between, the next download keeps the files that are finished;
    `main` points to the new files only when all of them are there and are what their names say.

    Args:
        on_bytes: called with a file's name and how many bytes more of it have come; absent, the hub's own bar is shown.

    Raises:
        ModelError: no room on the disk, the connection is lost, or a file is damaged.
    """
    from huggingface_hub import hf_hub_download

    _check_room(offer, param)
    with _explained(offer.repository, param):
        for name in offer.sizes:
            bar: Any = None if on_bytes is None else _counter(name, on_bytes)
            path = Path(hf_hub_download(offer.repository, name, revision=offer.commit, tqdm_class=bar))
            if name in offer.missing:
                _verify(path, name)
        hf_hub_download(offer.repository, offer.layout.marker)  # points main to it
    folder = snapshot(offer.repository, offer.layout)
    if folder is None:
        raise ModelError(f"{offer.repository} has changed meanwhile; run the same again", param=param)
    return folder


def size_on_disk(folder: Path) -> int:
    """Bytes of a directory's files, links followed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def license_of(folder: Path) -> str | None:
    """The license that a model directory's card (README.md) names, None where it names none."""
    if not (folder / "README.md").is_file():
        return None
    from huggingface_hub.repocard import metadata_load

    try:
        return _license_in(metadata_load(folder / "README.md") or {}) or None
    except ValueError:  # its YAML is no YAML
        return None


def weights_digest(folder: Path, parts: tuple[str, ...]) -> str:
    """sha256 over the weights and configs of these components of a model directory.

    A file in the hub's cache is a link to a blob named by its sha256, which is taken as it stands.
    """
    total = hashlib.sha256()
    for part in parts:
        for path in sorted((folder / part).rglob("*") if (folder / part).is_dir() else [folder / part]):
            if path.suffix not in (".safetensors", ".json"):
                continue
            blob = path.resolve().name
            if not re.fullmatch(r"[0-9a-f]{64}", blob):
                with path.open("rb") as file:
                    blob = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder)} {blob}\n".encode())
    return total.hexdigest()


def _license_in(card: Mapping[str, Any]) -> str:
    """The license's name in a card's metadata; empty where it has none."""
    name = card.get("license_name") if card.get("license") in (None, "other") else None
    return str(name or card.get("license") or "")


def _check_room(offer: Offer, param: str | None) -> None:
    folder = cache_folder()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < offer.bytes_to_fetch:
        raise ModelError(
            f"{offer.repository} needs {offer.bytes_to_fetch / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "make room, or let HF_HOME name another disk",
            param=param,
            code="disk_full",
        )


def _verify(path: Path, name: str) -> None:
    """Raises ModelError, and removes the file, where its content is not what its blob's name says."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return  # a small file, which git names otherwise
    with blob.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != blob.name:
        path.unlink()
        blob.unlink()
        raise ModelError(f"{name} came damaged and was removed; run the same again", code="model_damaged")


def _counter(name: str, on_bytes: Callable[[str, int], None]) -> type:
    """A class that the hub's client takes for a progress bar."""

    class Counter:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> "Counter":
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, count: float | None = 1) -> None:
            on_bytes(name, int(count or 0))

        def _ignore(self, *_: object, **__: object) -> None: ...

        close = update_transfer = set_postfix_str = set_transfer_postfix_str = _ignore

    return Counter


@contextmanager
def _explained(repository: str, param: str | None) -> Iterator[None]:
    """Whatever the hub's client raises becomes a ModelError that says what to do."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    page = page_of(repository)
    local = f"; or give a local copy: `{param}` /path/to/directory" if param else ""
    try:
        yield
    except ModelError as error:
        raise ModelError(error.message, param=error.param or param, code=error.code) from None
    except GatedRepoError:
        then = "`hf auth login`, or HF_TOKEN" if get_token() is None else "use a token of the account that accepted it"
        raise ModelError(
            f"{repository} is gated: accept its license at {page}, then {then}{local}", param=param, code="model_gated"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(f"the hub has no {repository} that you may read ({page}){local}", param=param) from None
    except Exception as error:  # no network, proxy, disk: the hub's client raises its transport's own errors
        causes = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)  # pyright: ignore[reportArgumentType]
        reason = str(causes[-1]).strip().splitlines()
        said = reason[0][:160] if reason else type(error).__name__
        code = "model_unreachable"
        if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
            said = "HF_HUB_OFFLINE is set"
        elif isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            said, code = f"it answers {error.response.status_code}: the token is not valid for this", "model_gated"
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            said, code = f"the disk of {cache_folder()} is full", "disk_full"
        raise ModelError(
            f"cannot fetch {repository} from the hub ({said}); check the network and {page}{local}",
            param=param,
            code=code,
        ) from None
