"""Settings: from variables, `.env` and secrets, the same in each process; a typo is refused by its name."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from recapture.cli.main import app
from recapture.cli.serve import settings_of
from recapture.client.options import Options
from recapture.engine.errors import InputError
from recapture.serve.jobs.options import run_config
from recapture.serve.keys import create_key, has_key, list_keys, revoke_key
from recapture.serve.settings import Settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECAPTURE_SERVE_SECRETS_DIR", str(tmp_path / "secrets"))


def test_the_command_line_goes_before_variables_before_dotenv_before_secrets(tmp_path, monkeypatch):
    (tmp_path / "secrets").mkdir()
    for name, value in (("database", "postgresql://secret"), ("max_running", "1"), ("max_queue", "1"), ("port", "1")):
        (tmp_path / "secrets" / f"recapture_serve_{name}").write_text(value + "\n")
    (tmp_path / ".env").write_text(
        "HF_TOKEN=x\nRECAPTURE_SERVE_MAX_RUNNING=2\nRECAPTURE_SERVE_MAX_QUEUE=2\nRECAPTURE_SERVE_PORT=2\n"
    )
    monkeypatch.setenv("RECAPTURE_SERVE_MAX_QUEUE", "3")
    monkeypatch.setenv("RECAPTURE_SERVE_PORT", "3")
    read = Settings.read(data=tmp_path, port=4)
    assert (read.database, read.max_running, read.max_queue, read.port) == ("postgresql://secret", 2, 3, 4)
    assert Settings.model_validate({"data": tmp_path, "port": 5}).max_queue == 3  # as Ray Serve fills it in


def test_the_variables_make_the_same_settings_in_another_process(tmp_path):
    given = Settings(
        data=tmp_path,
        input_roots={"studio": ["s3://b/clips"]},
        webhook_hosts=["*.example.com"],
        upload_days=1.5,
        port=0,
    )
    code = "from recapture.serve.settings import Settings; print(Settings.of_process().model_dump_json())"
    environment = {**os.environ, **given.variables()}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Settings.model_validate_json(told.stdout) == given


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MAX_RUNING", "3", "no setting has the variable RECAPTURE_SERVE_MAX_RUNING; did you mean RECAPTURE_SERVE_MAX_RUNNING?"),
        ("MAX_RUNNING", "many", "RECAPTURE_SERVE_MAX_RUNNING: Input should be a valid integer"),
        ("WEBHOOK_HOSTS", "a.example,b.example", "webhook_hosts.*lists and mappings are JSON"),
        ("DEVICE", "tpu", "RECAPTURE_SERVE_DEVICE: .*'tpu' is not one of auto"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_refused_by_its_name(tmp_path, monkeypatch, variable, value, message):
    monkeypatch.setenv(f"RECAPTURE_SERVE_{variable}", value)
    with pytest.raises(InputError, match=message):
        Settings.read(data=tmp_path)
    told = subprocess.run(
        [sys.executable, "-m", "recapture.serve.processes.ingress"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert told.stderr.startswith("recapture: ")
    assert "Traceback" not in told.stderr


def test_the_engines_options_are_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_SERVE_OPTIONS", '{"memory": 20, "sample.guidance": [1, 2]}')
    settings = Settings.read(data=tmp_path)
    config = run_config("tiny", Options(quality="draft", rank=4), 3, settings.options)
    assert (config.memory, config.sample.guidance, config.tune.rank, config.seed) == (20, (1, 2), 4, 3)
    assert config.tune.temporal_steps == 0
    for wrong, message in (
        ({"memory": "lots"}, "memory: 'lots' is not auto or a number"),
        ({"tune.rnk": 1}, "tune.rnk is no option of the engine"),
        ({"model": "svd"}, "model is a setting of its own"),
    ):
        with pytest.raises(InputError, match=message):
            Settings.read(data=tmp_path, options=wrong)


def test_a_wrong_line_of_dotenv_is_refused(tmp_path):
    (tmp_path / ".env").write_text("RECAPTURE_SERVE_MAX_RUNING=2\n")
    with pytest.raises(InputError, match=r"\.env has RECAPTURE_SERVE_MAX_RUNING"):
        Settings.read(data=tmp_path)


def test_variables_that_kubernetes_makes_of_services_are_none_of_ours(tmp_path, monkeypatch):
    for name in ("SVC_SERVICE_HOST", "SVC_SERVICE_PORT_HTTP", "SVC_PORT_8000_TCP_ADDR", "SVC_PORT"):
        monkeypatch.setenv(f"RECAPTURE_SERVE_{name}", "tcp://10.0.0.1:8000")
    assert Settings.read(data=tmp_path).port == 8000


def test_only_the_command_line_has_a_default_folder(tmp_path):
    with pytest.raises(InputError, match="RECAPTURE_SERVE_DATA: is not given"):
        Settings.read()
    assert settings_of().data == tmp_path / "recapture-data"


def test_the_keys_command_reads_the_same_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_SERVE_DATA", str(tmp_path / "service"))
    made = CliRunner().invoke(app, ["keys", "create", "--tenant", "studio", "--json"])
    assert json.loads(made.stdout)["tenant"] == "studio"
    assert (tmp_path / "service" / "recapture.db").is_file()


def test_a_service_knows_whether_it_has_a_key(tmp_path):
    records = Settings(data=tmp_path).open_database()
    assert not has_key(records)
    create_key(records, "studio")
    assert has_key(records)
    (known,) = list_keys(records)
    revoke_key(records, known.id)
    assert not has_key(records)
    records.close()
