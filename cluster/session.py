"""Start Ray on this machine, or join a running cluster. Requested resources are checked before waiting for them.

Ray always starts with token authentication: without it, Ray's ports run any code that reaches them.
"""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import AuthenticationError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ..engine.errors import ClusterError, InputError

NAMESPACE = "recapture"
LOCAL = "local"


@contextmanager
def connect(address: str | None, *, cpus: int | None = None, gpus: int | None = None) -> Iterator[None]:
    """Within the context this process is a driver of a Ray cluster.

    Args:
        address: None or `local` starts one on this machine, which ends with the context; `auto` and `HOST:PORT` join one
            that runs. A connection that this process has already is used and left as it is.
        cpus: CPUs that a started cluster offers; None is what the machine has. It may be more than that.
        gpus: GPUs that a started cluster offers; None is what the machine has.

    Raises:
        ClusterError: there is no cluster at the address, or it wants another token.
    """
    if ray.is_initialized():
        yield
        return
    local = address in (None, LOCAL)
    if not local:
        _refuse_silent(str(address))
    authenticate(create=local)
    started: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False} if local else {}
    try:
        ray.init(
            address=LOCAL if local else address,
            namespace=NAMESPACE,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **started,
        )
    except (ConnectionError, AuthenticationError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ClusterError(f"no Ray cluster answers at {address} ({reason})", param="cluster") from None
    try:
        yield
    finally:
        ray.shutdown()


def authenticate(*, create: bool) -> None:
    """Let this process and its children present the token, if it exists; `create` makes one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if create and "RAY_AUTH_TOKEN" not in os.environ:
        _ensure_token(path)
    if "RAY_AUTH_TOKEN" in os.environ or path.exists():
        os.environ["RAY_AUTH_MODE"] = "token"
        # Ray read the environment when it was imported, and keeps the first token that it met.
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def require(*, gpus: float = 0, cpus: float = 0) -> None:
    """Refuse what the cluster can never give, however long one waits.

    Raises:
        InputError: it has fewer GPUs or CPUs.
    """
    for name, param, needed in (("GPU", "gpus", gpus), ("CPU", "workers", cpus)):
        there = ray.cluster_resources().get(name, 0.0)
        if needed > there:
            raise InputError(
                f"needs {needed:g} {name}{'s' * (needed != 1)}, the cluster has {there:g}",
                param=param,
                code="too_small",
            )


@contextmanager
def placement(
    bundles: Sequence[Mapping[str, float]], *, strategy: str = "PACK", timeout_s: float = 120.0
) -> Iterator[PlacementGroup]:
    """Within the context the bundles are reserved, all of them or none.

    Raises:
        InputError: the cluster has less than the bundles take together.
        ClusterError: others hold the resources for longer than `timeout_s`.
    """
    require(
        gpus=sum(bundle.get("GPU", 0.0) for bundle in bundles), cpus=sum(bundle.get("CPU", 0.0) for bundle in bundles)
    )
    group = placement_group([dict(bundle) for bundle in bundles], strategy=strategy)
    try:
        if not group.wait(timeout_s):
            raise ClusterError(
                f"the cluster is busy: {len(bundles)} workers found no place within {timeout_s:g} s",
                code="cluster_busy",
            )
        yield group
    finally:
        remove_placement_group(group)


def _refuse_silent(address: str) -> None:
    """Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        if address == "auto":
            return
        raise InputError(f"{address!r} is not local, auto or HOST:PORT", param="cluster")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address} ({error})", param="cluster") from None


def _ensure_token(path: Path) -> None:
    """A token that only its owner can read: Ray would write one that everybody can."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
