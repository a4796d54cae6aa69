"""`recapture models pull` against a hub on this machine that serves real classes at tiny size, and what `auto` makes of it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline

from recapture.engine import hub
from recapture.engine.catalog import DEPTH_MODELS, MODELS, best_depth, find_model, holdings
from recapture.engine.config import override
from recapture.engine.errors import ModelError
from recapture.engine.geometry.depth_models import find_depth_model
from recapture.engine.layout import DEPTH, VIDEO
from recapture.engine.models.video import VideoModel
from recapture.engine.pipeline import Recapture, Result

from ..small_models import write_small_depth
from .hub_server import HubServer, Repository
from .test_pipeline import write_clip

DEPTH_NAME, SVD_NAME = DEPTH_MODELS["depth"].source, MODELS["svd"].source


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory) -> Path:
    """As the real repository: the model, its card, and what nobody here needs."""
    folder = write_small_depth(tmp_path_factory.mktemp("depth"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Depth\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "pytorch_model.bin").write_bytes(bytes(100))
    return folder


@pytest.fixture(scope="module")
def svd_folder(tmp_path_factory, small_svd) -> Path:
    """As the real repository: both precisions, and one file with everything in another layout."""
    folder = tmp_path_factory.mktemp("svd") / "svd"
    shutil.copytree(small_svd, folder)
    StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16).save_pretrained(
        folder, variant="fp16"
    )
    (folder / "svd.safetensors").write_bytes(bytes(100))
    (folder / "LICENSE.md").write_text("the terms")
    return folder


@dataclass(frozen=True, kw_only=True)
class Answer:
    code: int
    out: str
    err: str


class Machine:
    """A user's machine: the command in a process of its own, with a cache that is empty at first."""

    def __init__(self, server: HubServer, cache: Path) -> None:
        self.server, self.cache = server, cache

    def __call__(self, *words: object, **env: str) -> Answer:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        mine = {"HF_ENDPOINT": self.server.url, "HF_HOME": str(self.cache), **env}
        ran = subprocess.run(
            [sys.executable, "-m", "recapture", *map(str, words)],
            env=clean | mine,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in ran.stderr, ran.stderr
        return Answer(code=ran.returncode, out=ran.stdout, err=ran.stderr)


@pytest.fixture
def machine(depth_folder, svd_folder, tmp_path, monkeypatch):
    """A machine whose cache and hub are those of this process, too."""
    repositories = {DEPTH_NAME: Repository(folder=depth_folder), SVD_NAME: Repository(folder=svd_folder)}
    with HubServer(repositories) as server:
        for name, value in {
            "HF_HUB_CACHE": str(tmp_path / "cache" / "hub"),
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield Machine(server, tmp_path / "cache")


def test_one_copy_comes_with_its_license_and_is_there_offline(machine):
    pulled = machine("models", "pull", "depth")
    assert pulled.code == 0, pulled.err
    lines = {line.split()[0]: line for line in pulled.out.splitlines()}
    assert f"{DEPTH_NAME}, 4 files" in lines["model"]
    assert "Apache-2.0" in lines["license"]
    assert "fetching   model.safetensors" in pulled.err
    assert [name for name, _ in machine.server.fetched()] == ["model.safetensors"]
    machine.server.requests.clear()
    rows = json.loads(machine("models", "list", "--json", HF_HUB_OFFLINE="1").out)
    held = next(row for row in rows if row["name"] == "depth")
    assert (held["here"], held["license"], held["source"]) == (True, "Apache-2.0", DEPTH_NAME)
    folder = Path(held["path"])
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert held["bytes"] == sum((folder / name).stat().st_size for name in names)
    offline = machine("models", "pull", "depth", HF_HUB_OFFLINE="1")
    assert offline.code == 0
    assert "HF_HUB_OFFLINE is set" in offline.err
    assert machine.server.requests == []
    hub.download(hub.look(DEPTH_NAME))
    assert machine.server.fetched() == []  # nothing comes twice


def test_a_cut_connection_is_taken_up_where_it_broke(machine, tmp_path):
    """The hub's client keeps what it has in pieces of 10 MB."""
    large = write_small_depth(tmp_path / "large", width=400)
    machine.server.repositories[DEPTH_NAME] = Repository(folder=large)
    machine.server.cut_after = 12 << 20
    pulled = machine("models", "pull", "depth")
    assert pulled.code == 0, pulled.err
    assert machine.server.fetched() == [("model.safetensors", None), ("model.safetensors", f"bytes={10 << 20}-")]
    folder = hub.snapshot(DEPTH_NAME, DEPTH)
    assert folder is not None
    assert (folder / "model.safetensors").read_bytes() == (large / "model.safetensors").read_bytes()


def test_svd_comes_in_half_precision_only(machine):
    pulled = machine("models", "pull", "svd")
    assert pulled.code == 0, pulled.err
    assert "Stability AI Community License" in pulled.out
    assert f"{machine.server.url}/{SVD_NAME}/blob/main/LICENSE.md" in pulled.out
    assert "terms" in pulled.out
    names = [name for name, _ in machine.server.fetched()]
    assert sorted(names) == ["diffusion_pytorch_model.fp16.safetensors"] * 2 + ["model.fp16.safetensors"]
    entry, folder = find_model("svd")
    assert folder == hub.snapshot(SVD_NAME, VIDEO)
    assert entry.license == "Stability AI Community License"
    model = VideoModel(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert model.parameters > 0


def test_a_gated_repository_says_where_to_accept(machine):
    machine.server.repositories[DEPTH_NAME].gated = "right"
    without = machine("models", "pull", "depth")
    assert without.code == 2
    assert f"{machine.server.url}/{DEPTH_NAME}, then `hf auth login`, or HF_TOKEN" in without.err
    wrong = machine("models", "pull", "depth", HF_TOKEN="wrong")
    assert "a token of the account that accepted it" in wrong.err
    assert hub.snapshot(DEPTH_NAME, DEPTH) is None
    assert machine("models", "pull", "depth", HF_TOKEN="right").code == 0


def test_what_cannot_be_pulled(machine, depth_folder, tmp_path):
    absent = machine("models", "pull", "nobody/nothing")
    assert absent.code == 2
    assert "the hub has no nobody/nothing" in absent.err
    assert "no model 'dept' to pull" in machine("models", "pull", "dept").err
    other = tmp_path / "other"
    shutil.copytree(depth_folder, other)
    machine.server.repositories["some/other"] = Repository(folder=other)
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"config\.json with model_type depth_anything"):
        hub.look("some/other")
    machine.server.repositories["some/pickles"] = Repository(folder=other)
    (other / "config.json").write_text((depth_folder / "config.json").read_text())
    (other / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks \*\.safetensors"):
        hub.look("some/pickles")
    assert machine.server.fetched() == []
    machine.server.__exit__()
    assert "cannot fetch" in machine("models", "pull", "depth").err


def test_a_disk_too_small_is_known_before(machine):
    machine.server.repositories[DEPTH_NAME].claimed["model.safetensors"] = 10**17
    with pytest.raises(ModelError, match=r"needs 100000000\.0 GB") as refused:
        hub.download(hub.look(DEPTH_NAME))
    assert refused.value.code == "disk_full"
    assert machine.server.fetched() == []


def test_what_comes_damaged_is_no_model(machine):
    machine.server.repositories[DEPTH_NAME].damaged.add("model.safetensors")
    broken = machine("models", "pull", "depth")
    assert broken.code == 2
    assert "came damaged" in broken.err
    held = next(held for held in holdings() if held.entry.name == "depth")
    assert (held.folder, held.unfinished) == (None, True)
    assert best_depth().name == "embedded"
    machine.server.repositories[DEPTH_NAME].damaged.clear()
    hub.download(hub.look(DEPTH_NAME))
    assert best_depth().name == "depth"


def test_a_newer_one_that_fails_leaves_the_older(machine, depth_folder, tmp_path):
    before = hub.fetch(DEPTH_NAME, DEPTH, param="depth.model")
    newer = tmp_path / "newer"
    shutil.copytree(depth_folder, newer)
    (newer / "model.safetensors").write_bytes((depth_folder / "model.safetensors").read_bytes() + b"x")
    later = Repository(folder=newer, commit="f" * 40, damaged={"model.safetensors"})
    machine.server.repositories[DEPTH_NAME] = later
    with pytest.raises(ModelError, match="came damaged"):
        hub.download(hub.look(DEPTH_NAME))
    assert hub.snapshot(DEPTH_NAME, DEPTH) == hub.fetch(DEPTH_NAME, DEPTH, param="depth.model") == before
    later.damaged.clear()
    assert hub.download(hub.look(DEPTH_NAME)).name == "f" * 40
    assert hub.snapshot(DEPTH_NAME, DEPTH) != before


def test_any_repository_of_a_known_kind_is_listed(machine, depth_folder):
    machine.server.repositories["some/metric"] = Repository(folder=depth_folder)
    hub.download(hub.look("some/metric"))
    held = list(holdings())[-1]
    assert (held.entry.name, held.kind, held.entry.license) == ("some/metric", "depth", "apache-2.0")
    source = find_depth_model("some/metric")
    assert (source.folder, source.license) == (held.folder, "apache-2.0")


def test_pieces_that_an_index_names_must_all_be_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert DEPTH.lacking(tmp_path) == ["model-00002-of-00002.safetensors"]
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert DEPTH.lacking(tmp_path) == []
    chosen = DEPTH.choose([path.name for path in tmp_path.iterdir()])
    assert "model.safetensors.index.json" in chosen
    with pytest.raises(ModelError, match=r"lacks .*unet/config\.json"):
        VIDEO.choose(["model_index.json"])


def test_auto_takes_what_was_pulled_and_the_key_says_so(machine, small_svd, tmp_path):
    clip, store = write_clip(tmp_path / "walk.mp4"), tmp_path / "store"

    def film(**chosen: str) -> Result:
        engine = Recapture.from_pretrained(small_svd, device="cpu", store=store)
        config = override(engine.default_config(), {"depth": chosen})
        return engine(clip, "static", config=config, until="depth")

    small = film()
    assert small.config.depth.model == "embedded"
    assert small.notes == ["Depth: embedded model (small). Better: recapture models pull depth"]
    assert machine.server.requests == []  # nothing is asked for of itself
    hub.fetch(DEPTH_NAME, DEPTH, param="depth.model")
    machine.server.requests.clear()
    better = film()
    assert better.config.depth.model == DEPTH_NAME
    assert better.notes == [f"Depth: {DEPTH_NAME} (Apache-2.0)"]
    assert better.entries["depth"].key != small.entries["depth"].key
    assert better.entries["frames"].key == small.entries["frames"].key
    assert machine.server.requests == []
    typed = film(model="embedded")
    assert typed.notes == []
    assert typed.entries["depth"].key == small.entries["depth"].key


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_says_which_depth_it_takes(machine, tmp_path):
    clip = write_clip(tmp_path / "walk.mp4")
    words = ("preview", clip, "--camera", "static", "--out", tmp_path / "out", "--store", tmp_path / "store")
    said = machine(*words)
    assert said.code == 0, said.err
    assert said.err.count("Depth: embedded model (small). Better: recapture models pull depth") == 1
    assert machine("models", "pull", "depth").code == 0
    said = machine(*words, HF_HUB_OFFLINE="1")
    assert said.code == 0, said.err
    assert said.err.count(f"Depth: {DEPTH_NAME} (Apache-2.0)") == 1
