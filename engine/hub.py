"""Model directories: the embedded ones, those downloaded from a hub, and what their weights are."""

import hashlib
import re
from pathlib import Path

from .errors import ModelError

EMBEDDED = Path(__file__).parent / "weights"


def download(repository: str, *, param: str, allow: list[str]) -> Path:
    """A hub repository's files in the local hub cache.

    Raises:
        ModelError: says which page to visit, or how to give a local directory.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repository}"
    local = f"or give a local copy: {param} /path/to/directory"
    try:
        return Path(snapshot_download(repository, allow_patterns=allow))
    except GatedRepoError:
        raise ModelError(
            f"{repository} is gated: accept its licence at {page}, then `hf auth login`; {local}",
            param=param,
            code="model_gated",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(f"the hub has no {repository} that you may read ({page}); {local}", param=param) from None
    except Exception as error:  # no network, proxy, disk: the hub client raises its transport's own errors
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot fetch {repository} from the hub ({reason}); check the network and {page}, {local}",
            param=param,
            code="model_unreachable",
        ) from None


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
