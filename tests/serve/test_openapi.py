"""What the service says of itself: frozen in a file, and asked for by schemathesis from all sides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recapture.serve.settings import Settings

from ..engine.test_pipeline import write_clip
from .service import Server

GOLDEN = Path(__file__).parent / "golden" / "openapi.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(Settings(data=tmp_path_factory.mktemp("data"), interactive_wait_s=0.3)) as server:
        yield server


def test_the_openapi_changes_on_purpose_only(server):
    """`RECAPTURE_WRITE_GOLDEN=1 pytest tests/serve/test_openapi.py` writes it anew: look at the difference then."""
    said = json.dumps(server.api.openapi(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("RECAPTURE_WRITE_GOLDEN"):
        GOLDEN.write_text(said)
    assert json.loads(said) == json.loads(GOLDEN.read_text())


@pytest.mark.slow
@pytest.mark.ci
def test_whatever_is_asked_the_answer_is_documented(server, tmp_path):
    """All phases of schemathesis: no 500, no status, type or body that the OpenAPI does not have."""
    key = server.key("tester")
    with server.client("tester") as client:
        client.uploads.create(write_clip(tmp_path / "walk.mp4"))
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{server.url}/openapi.json",
        "-H",
        f"Authorization: Bearer {key}",
        "--max-examples",
        "15",
        "--seed",
        "1",
        "--request-timeout",
        "20",
        "--exclude-path",
        "/readyz",  # no worker runs here: its 503 is right
        "--exclude-checks",
        "positive_data_acceptance",  # a camera is a language, which a schema cannot hold
    ]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert "Selected: 19/20" in ran.stdout
