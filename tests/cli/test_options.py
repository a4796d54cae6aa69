"""One table of options: what each face makes of it, and where values come from besides the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

from recapture.cli import defaults
from recapture.cli.main import app
from recapture.cli.options import STEPS, spelling
from recapture.cli.preview import SECTIONS
from recapture.client import Options
from recapture.engine.config import BY_QUALITY, OPTIONS, RunConfig, check, override
from recapture.engine.errors import InputError, ResourceError
from recapture.engine.options import Option, by_section
from recapture.engine.pipeline import pick_device
from recapture.serve.api.error_handlers import request_field
from recapture.serve.jobs.options import run_config, sections
from recapture.serve.request_options import TARGET, source

from .test_cli import recapture  # noqa: F401 - the fixture

FLAGGED = [option for option in OPTIONS.values() if option.flag]
REQUESTED = [option for option in OPTIONS.values() if option.request]


@pytest.fixture(autouse=True)
def no_defaults(monkeypatch, tmp_path) -> Path:
    """Where the user's file would be; the machine's own is out of the way."""
    path = tmp_path / "home" / "recapture" / "config.toml"
    monkeypatch.setattr(defaults, "config_file", lambda: path)
    return path


@pytest.fixture
def run_words(recapture, tmp_path) -> Callable[..., Any]:  # noqa: F811
    def call(*words: object) -> Any:
        return recapture("run", tmp_path / "no.mp4", "--camera", "static", "--out", tmp_path / "out", *words)

    return call


def parsed(*words: str) -> dict[str, Any]:
    """The values that `recapture run` takes from these words, by the names of the table."""
    command = typer.main.get_command(app)
    default_map = defaults.apply(command)
    run: Any = command.commands["run"]  # pyright: ignore[reportAttributeAccessIssue]
    return run.make_context(
        "run", ["clip.mp4", "--camera", "static", "--out", "out", *words], default_map=default_map.get("run")
    ).params


def other_value(option: Option) -> Any:
    """A value that the option accepts and that is not its default."""
    if option.kind is bool:
        return not option.default
    if words := [word for word in option.choices if word != option.default]:
        return words[0]
    if option.kind is str:
        return "some/where"
    assert option.bounds is not None
    value = option.kind(option.bounds[0] + (1 if option.kind is int else option.bounds[1] / 3))
    return (1.0, value) if option.pair else value


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["--sample-steps", "0"], "sample.steps"),
        (["--sdedit-steps", "0"], "refine.steps"),
        (["--frames", "1"], "decode.max_frames"),
        (["--fov", "1"], "depth.fov_deg"),
        (["--sdedit-sigma", "-1"], "refine.sigma"),
        (["--mask", "x"], "condition.mask_mode"),
        (["--feather", "999"], "deliver.feather_px"),
    ],
)
def test_a_refusal_names_the_option_as_each_face_calls_it(run_words, words, path):
    flag, text = words
    option = OPTIONS[path]
    answer = run_words(*words)
    answer.refused(f"recapture: {flag}: ", f" is not {option.accepted}")
    assert json.loads(run_words(*words, "--json").out)["error"]["param"] == flag
    with pytest.raises(InputError) as refused:
        override(RunConfig(), by_section({path: option.read(text)}))
    assert str(refused.value).startswith(f"{path}: ")
    assert refused.value.spelled(spelling)[1] == flag
    if option.request:
        name = option.request_name
        assert refused.value.spelled(request_field)[1] == f"options.{name}"
        assert spelling(f"options.{name}") == flag
        with pytest.raises(ValueError, match=name):
            Options.model_validate({name: float(text)})


def test_other_options_in_a_message_are_spelled_as_well(run_words):
    run_words("--height", 64).refused("--height: give both --height and --width")
    run_words("--multiview", "mine:Net").refused("--multiview: is used only where --anchor is")
    run_words("--quality", "paper", "--spatial-steps", 3).refused("--schedule", "--spatial-steps and --temporal-steps")
    run_words("--device", "tpu").refused("--device: 'tpu' is not one of auto, cpu, cuda")
    with pytest.raises(InputError, match=r"device: (no CUDA device is available|there is no cuda:63)"):
        pick_device("cuda:63")
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="device: no Apple GPU is available"):
            pick_device("mps")
    error = ResourceError("lower `condition.height` or set `device` to cpu", param="memory")
    assert error.spelled(spelling) == ("lower --height or set --device to cpu", "--memory")
    assert error.spelled(request_field) == ("lower options.height or set device to cpu", "memory")
    assert spelling("tune.sigma_mean") == "tune.sigma_mean"
    assert (spelling("video"), spelling("depth_dir"), spelling("input.uri")) == ("CLIP", "--depth-dir", "input.uri")


def test_every_option_is_named_once():
    names = [option.name for option in OPTIONS.values()]
    assert len(set(names)) == len(names)
    assert len({option.request_name for option in REQUESTED}) == len(REQUESTED)
    assert set(OPTIONS) >= BY_QUALITY
    for path, option in OPTIONS.items():
        assert option.help.endswith("."), path
        assert option.panel, path
        assert (option.bounds is not None) == (option.kind in (int, float)), path
        assert attrgetter(path)(RunConfig()) == option.default, path
    check(RunConfig())


@pytest.mark.parametrize("option", FLAGGED, ids=lambda option: option.name)
def test_the_words_for_a_value_are_read_as_that_value(option):
    value = other_value(option)
    option.check(value)
    words = option.words(value)
    assert words is not None
    assert parsed(*words)[option.name] == value


def test_preview_takes_what_an_anchor_depends_on():
    commands: Any = typer.main.get_command(app)
    flags = {name: {flag for one in commands.commands[name].params for flag in one.opts} for name in ("run", "preview")}
    assert {option.flag for option in FLAGGED} | {STEPS.flag} <= flags["run"]
    shown = {option.flag for option in FLAGGED if option.path.split(".")[0] in SECTIONS}
    assert shown == flags["preview"] & {option.flag for option in FLAGGED}
    assert {"--structure", "--depth", "--locked", "--frames"} <= shown


def test_the_clients_options_are_those_of_the_table():
    assert TARGET.read_text() == source(), "run `make options`"


@pytest.mark.parametrize("option", REQUESTED, ids=lambda option: option.request_name)
def test_a_request_reaches_the_engine_within_the_same_bounds(option):
    value = other_value(option)
    asked = Options.model_validate({option.request_name: option.given(value)})
    assert sections(asked) == by_section({option.path: value})
    if option.bounds:
        for end, step in zip(option.bounds, (-1, 1), strict=True):
            assert sections(Options.model_validate({option.request_name: end})) == by_section(
                {option.path: option.read(end)}
            )
            with pytest.raises(ValueError, match=option.request_name):
                Options.model_validate({option.request_name: end + step})
            with pytest.raises(InputError):
                option.check(option.read(end + step))
    assert run_config("tiny", Options(), 3, {}) == run_config("tiny", Options(sample_steps=None), 3, {})


def test_values_of_another_type_are_refused():
    for path, value in [
        ("tune.rank", True),
        ("tune.rank", 2.5),
        ("tune.lr", None),
        ("depth.model", 3),
        ("offload", 1),
        ("sample.guidance", 2.0),
        ("sample.guidance", (1.0, float("nan"))),
        ("memory", True),
        ("memory", "lots"),
    ]:
        with pytest.raises(InputError) as refused:
            override(RunConfig(), by_section({path: value}))
        assert refused.value.param == path


def test_variables_and_the_users_file_are_defaults(run_words, no_defaults, monkeypatch):
    assert parsed()["rank"] is None
    no_defaults.parent.mkdir(parents=True)
    no_defaults.write_text(
        'device = "cuda:1"\n[run]\nrank = 4\nsample-steps = 12\noffload = true\n[bulk]\nattempts = 5\n'
    )
    found = parsed()
    assert (found["rank"], found["sample_steps"], found["offload"], found["device"]) == (4, 12, True, "cuda:1")
    monkeypatch.setenv("RECAPTURE_RANK", "8")
    monkeypatch.setenv("RECAPTURE_OFFLOAD", "0")
    assert (parsed()["rank"], parsed()["offload"]) == (8, False)
    assert parsed("--rank", "16")["rank"] == 16
    monkeypatch.setenv("RECAPTURE_RANK", "0")
    run_words().refused("--rank (from RECAPTURE_RANK): 0 is not a whole number from 1 to 256")
    monkeypatch.delenv("RECAPTURE_RANK")
    no_defaults.write_text('[run]\nschedule = "both"\n')
    run_words().refused(f"--schedule (from {no_defaults}): 'both' is not one of decoupled, joint")
    for text, said in [
        ("rnak = 3", "no command has an option rnak"),
        ("[run]\nattempts = 3", "run has no option attempts"),
        ("[runn]\nrank = 3", "recapture has no command runn"),
        ("rank =", "cannot be read as TOML"),
    ]:
        no_defaults.write_text(text)
        run_words().refused(str(no_defaults), said)


def test_an_earlier_runs_configuration_counts_more_than_defaults(run_words, no_defaults, tmp_path):
    earlier = override(RunConfig(), {"tune": {"rank": 2}, "condition": {"height": 64, "width": 64}})
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"schema": "recapture.config", "version": 1, "config": earlier.to_json()}))
    no_defaults.parent.mkdir(parents=True)
    no_defaults.write_text('[run]\nquality = "draft"\nheight = 128\nrank = 9\n')
    run_words().refused("--height: give both")  # over a quality, the file's height counts
    run_words("--config", config).refused("no.mp4")  # here it does not, and neither does its quality
    run_words("--config", config, "--quality", "draft").refused("--config or --quality, not both")


REFUSALS = [
    ["--schedule", "both"],
    ["--quality", "best"],
    ["--device", "tpu"],
    ["--rank", "0"],
    ["--height", "64"],
    ["--memory", "lots"],
    ["--model", "gigantic"],
    ["--depth", "nonsense"],
    ["--camera", "swirl(3deg)"],
    ["--rnak", "3"],
    ["--cluster-x"],
]


def test_a_mistyped_choice_is_refused_before_torch_loads(tmp_path):
    """Loading it takes many seconds; the same holds for every command with choices."""
    calls = [["run", "clip.mp4", "--out", "out", "--camera", "static", *words] for words in REFUSALS]
    calls += [
        ["preview", "clip.mp4", "--camera", "static", "--anchor", "both"],
        ["bulk", "m.csv", "--out", "o", "--keep", "x"],
        ["serve", "--device", "tpu"],
        ["bench", "kernels", "--device", "tpu"],
        ["evaluate", "d", "--device", "tpu"],
        ["submit", "m.csv", "--out", "o", "--address", "http://h:1", "--keep", "x"],
    ]
    code = f"""
import sys
from recapture.cli.main import main
for words in {calls!r}:
    sys.argv = ["recapture", *words]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 2, (words, stop.code)
    else:
        raise AssertionError(words)
    heavy = {{"torch", "diffusers", "transformers", "ray"}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.strip().splitlines()) == len(calls)


def test_help_has_panels_by_subject_and_three_examples(recapture, monkeypatch):  # noqa: F811
    monkeypatch.setenv("COLUMNS", "140")
    said = recapture("run", "-h").out
    for option in FLAGGED:
        assert option.flag in said
        assert f"─ {option.panel} ─" in said
    examples = [
        line.split("recapture run")[1] for line in said.splitlines() if line.strip().startswith("recapture run ")
    ]
    assert len(examples) == 3
    assert said == recapture("run", "--help").out
    assert "[N, h, w]" in said


def test_it_runs_as_a_module_and_completes_choices(tmp_path):
    environment = {"PATH": "/usr/bin", "HOME": str(tmp_path), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "recapture"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, env=environment, check=True)
    assert version.stdout.count(".") == 2
    for words, found in [
        ("recapture run clip.mp4 --anchor m", {"multiview"}),
        ("recapture run clip.mp4 --device c", {"cpu", "cuda"}),
        ("recapture pre", {"preview", "presets"}),
        ("recapture run --sdedit-", {"--sdedit-sigma", "--sdedit-steps"}),
        ("recapture run clip.mp4 --camera dol", {"dolly", "dolly_zoom"}),
    ]:
        ask = {"_RECAPTURE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment | ask)
        assert found <= set(done.stdout.split()), (words, done.stdout, done.stderr)
