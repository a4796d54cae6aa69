"""Settings of a service: one model that YAML, variables, files, the command line and tests fill in."""

import difflib
import json
import os
import re
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from ..client.schema import MOST_UPLOAD_BYTES
from ..engine.config import OPTIONS, RunConfig, check_device, override
from ..engine.errors import InputError, StoreError
from ..engine.options import by_section
from .database import Database
from .jobs.jobs import Quota
from .safe_http import Outbound

PREFIX = "RECAPTURE_SERVE_"
SECRETS_VARIABLE = "RECAPTURE_SERVE_SECRETS_DIR"
_SECRETS_DIR = "/run/secrets"
_KUBERNETES = re.compile(r".*_SERVICE_(HOST|PORT\w*)|.*_PORT(_\d+_(TCP|UDP)\w*)?")
"""Variables that Kubernetes makes of the names of services."""


def _network(value: str) -> str:
    ip_network(value)
    return value


def _device(value: str) -> str:
    try:
        check_device(value)
    except InputError as error:
        raise ValueError(error.message) from None
    return value


def _options(value: dict[str, Any]) -> dict[str, Any]:
    given = {path: tuple(item) if isinstance(item, list) else item for path, item in value.items()}
    for path in given:
        if path not in OPTIONS or path == "model":
            raise ValueError(
                f"{path} is no option of the engine" if path != "model" else "model is a setting of its own"
            )
    try:
        override(RunConfig(), by_section(given))
    except InputError as error:
        raise ValueError(str(error)) from None
    return given


Network = Annotated[str, AfterValidator(_network)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """All processes of one service are started with the same.

    What is not given comes from the variable RECAPTURE_SERVE_<NAME>, else from `.env` in the working directory, else from
    the file recapture_serve_<name> in $RECAPTURE_SERVE_SECRETS_DIR (/run/secrets). Lists and mappings are JSON there.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        env_prefix=PREFIX,
        env_file=".env",
        dotenv_filtering="match_prefix",
    )

    data: Annotated[Path, AfterValidator(Path.absolute)]
    """Folder of uploads, results and the stage store; shared by all processes, unless `objects` is given."""
    objects: str | None = None
    """`s3://bucket/prefix` or `gs://...`, where uploads, results and stages lie; `data` is then a folder of each machine for
    what is being made, and for copies."""
    database: str | None = None
    """`postgresql://...`; None is a SQLite file in `data`, for one machine only."""
    model: str = Field(default="tiny", max_length=500)
    device: Annotated[str, AfterValidator(_device)] = "auto"
    options: Annotated[dict[str, Any], AfterValidator(_options)] = {}
    """The engine's options by path (`{"memory": 20, "sample.decode_chunk": 4}`) under those of each request."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    lease_s: Seconds = 30.0
    """How long a worker may be silent before its render goes to another."""
    interactive_wait_s: Seconds = 55.0
    """How long a preview or an estimate may take before the caller gets `busy`."""
    upload_silence_s: Seconds = 30.0
    """A part of an upload of which nothing arrives for so long is given up; what has arrived stays."""
    max_upload_bytes: int = Field(default=MOST_UPLOAD_BYTES, ge=1, le=MOST_UPLOAD_BYTES)
    max_tenant_bytes: int = Field(default=20 << 30, ge=1)
    """Uploads a tenant may have at once."""
    max_active: int = Field(default=100, ge=1)
    max_running: int = Field(default=4, ge=1)
    max_queue: int = Field(default=2000, ge=1)
    max_render_s: Seconds = 86_400.0
    """A render that by its estimate takes longer is refused before it is tuned; every number of a request is bounded,
    but not their product."""
    input_roots: dict[str, list[str]] = {}
    """Folders by tenant (local paths, s3:// and other `pyarrow.fs` URIs) that clips may be named in instead of being
    uploaded; a tenant without any uploads."""
    webhook_hosts: list[str] = []
    """Names that webhooks may be sent to, `*.example.com` for all below one; none listed is any public one."""
    webhook_networks: list[Network] = []
    """Private networks that webhooks may reach all the same, also by http: `10.1.0.0/16`."""
    upload_days: float | None = Field(default=None, gt=0, le=36_500)
    """Days after its last use that an upload is removed; None keeps it until it is deleted."""
    ingresses: int = Field(default=1, ge=1, le=64)
    """Replicas on Ray Serve."""
    renderers: int = Field(default=1, ge=1, le=1024)
    """Replicas on Ray Serve, each on a GPU of its own where `device` is cuda, or auto and the cluster has GPUs."""
    child_memory_bytes: int = Field(default=4 << 30, ge=256 << 20)
    """Limits of the process that decodes an upload."""
    child_cpu_s: int = Field(default=600, ge=1)

    def __init__(self, **values: Any) -> None:
        folder = os.environ.get(SECRETS_VARIABLE, _SECRETS_DIR)
        super().__init__(_secrets_dir=folder if os.path.isdir(folder) else None, **values)

    @model_validator(mode="before")
    @classmethod
    def _known_variables(cls, values: Any) -> Any:
        known = {SECRETS_VARIABLE, *(PREFIX + name.upper() for name in cls.model_fields)}
        for name in sorted(set(os.environ) - known):
            if name.startswith(PREFIX) and not _KUBERNETES.fullmatch(name):
                raise ValueError(f"no setting has the variable {name}{_meant(name, known)}")
        return values

    @classmethod
    def read(cls, **values: Any) -> "Settings":
        """The settings, with refusals in one sentence.

        Args:
            values: what the command line gives; the rest is as for the class.

        Raises:
            InputError: a value is not accepted, or a variable is unknown.
        """
        try:
            return cls(**values)
        except SettingsError as error:  # a list or mapping that is no JSON
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise InputError(f"{error}: lists and mappings are JSON{cause}") from None
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            message = str(first["msg"]).removeprefix("Value error, ")
            if name in values or not name:
                raise InputError(message, param=name or None) from None
            if first["type"] == "missing":
                message = "is not given"
            elif first["type"] == "extra_forbidden":
                raise InputError(f".env has {PREFIX}{name.upper()}, which is no setting") from None
            raise InputError(f"{PREFIX}{name.upper()}: {message}") from None

    @classmethod
    def of_process(cls) -> "Settings":
        """The settings of a process that has no command line; refusals end it with a sentence."""
        try:
            return cls.read()
        except InputError as error:
            sys.exit(f"recapture: {error}")

    def variables(self) -> dict[str, str]:
        """The variables that make the same settings in another process.

        Environment and not the command line: everybody on a machine can read the latter, and it may hold a password.
        """
        values = self.model_dump(mode="json", exclude_none=True)
        return {
            PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }

    def outbound(self) -> Outbound:
        """Where webhooks may go."""
        return Outbound(hosts=self.webhook_hosts, networks=self.webhook_networks)

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data.absolute() / 'recapture.db'}"

    @property
    def quota(self) -> Quota:
        return Quota(max_active=self.max_active, max_running=self.max_running, max_queue=self.max_queue)

    def open_database(self) -> Database:
        """The records, and the folder beside them; whichever process comes first makes both.

        Raises:
            StoreError: one of them cannot be used.
        """
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder {self.data} cannot be made: {error.strerror}") from None
        return Database(self.database_url)

    def upload_path(self, upload: str) -> Path:
        # One name for all: it is what a message about the clip calls it.
        return self.data / "uploads" / upload / "clip"

    def store_path(self, tenant: str) -> Path:
        """The stage store of one tenant: what one has computed tells another nothing."""
        return self.data / "stores" / tenant

    def render_path(self, render: str) -> Path:
        return self.data / "renders" / render


def _meant(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
