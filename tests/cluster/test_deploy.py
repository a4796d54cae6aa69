"""The deployment files: against KubeRay's own schemas, and against what they promise."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from recapture.cluster.bulk.metrics import NAMES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
CRDS = ROOT.parent / "shared" / "kuberay"
KINDS = {"job.yaml": ("RayJob", "rayjobs"), "service.yaml": ("RayService", "rayservices")}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI v3 schema as JSON Schema that, like the API server asked to validate strictly, knows no other fields."""
    made = {name: value for name, value in schema.items() if not name.startswith("x-")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made.pop("pattern", None)  # of the text form only
    for name in ("properties",):
        if name in made:
            made[name] = {key: strict(value) for key, value in made[name].items()}
            if not schema.get("x-kubernetes-preserve-unknown-fields"):
                made["additionalProperties"] = False
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(made["additionalProperties"])
    if "items" in made:
        made["items"] = strict(made["items"])
    return made


def schema_of(plural: str) -> dict[str, Any]:
    crd = yaml.safe_load(gzip.decompress((CRDS / f"ray.io_{plural}.yaml.gz").read_bytes()))
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return strict(schema)


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's schemas are not beside this checkout")
@pytest.mark.parametrize("name", KINDS)
def test_manifests_follow_kuberays_schema(name):
    kind, plural = KINDS[name]
    (resource,) = [each for each in documents(name) if each["kind"] == kind]
    schema = schema_of(plural)
    jsonschema.validate(resource, schema)
    resource["spec"]["backofLimit"] = 5
    with pytest.raises(jsonschema.ValidationError, match="backofLimit"):
        jsonschema.validate(resource, schema)


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod spec in a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for item in value.values():
            yield from pods(item)
    elif isinstance(value, list):
        for item in value:
            yield from pods(item)


@pytest.mark.parametrize("name", KINDS)
def test_pods_have_no_root_no_account_token_and_limits(name):
    found = list(pods(documents(name)))
    assert len(found) >= 2
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            if container["name"] != "submitter":
                assert container["readinessProbe"]
                assert container["livenessProbe"]
            if container["name"] == "ray-worker":
                assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", KINDS)
def test_the_cluster_asks_for_a_token_from_a_secret_and_is_fenced_in(name):
    resource, policy = documents(name)
    spec = resource["spec"].get("rayClusterSpec") or resource["spec"]["rayClusterConfig"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "recapture-ray-token"}
    assert "kind: Secret" not in (DEPLOY / name).read_text()
    assert policy["kind"] == "NetworkPolicy"
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert selected <= group["template"]["metadata"]["labels"].items()
    open_ports = [rule.get("ports") for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert open_ports == ([[{"port": 8000, "protocol": "TCP"}]] if name == "service.yaml" else [])


def test_a_service_survives_its_head_and_a_job_begins_again():
    (job, _), (service, _) = documents("job.yaml"), documents("service.yaml")
    assert job["spec"]["backoffLimit"] > 0
    assert "gcsFaultToleranceOptions" not in job["spec"]["rayClusterSpec"]
    redis = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "recapture-redis"
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert app["import_path"] == "recapture.serve.api.app:build_app"


def test_versions_are_those_of_the_lock():
    locked = re.search(r"^ray(?:\[.*\])?==(\S+)", (ROOT / "locks" / "runtime.txt").read_text(), re.MULTILINE)[1]
    for name in KINDS:
        spec = documents(name)[0]["spec"]
        assert (spec.get("rayClusterSpec") or spec["rayClusterConfig"])["rayVersion"] == locked


def test_the_jobs_command_is_one_that_the_cli_has():
    import shlex

    from typer.main import get_command

    from recapture.cli.main import app

    words = shlex.split(documents("job.yaml")[0]["spec"]["entrypoint"])
    assert words[:2] == ["recapture", "bulk"]
    options = {name for param in get_command(app).commands["bulk"].params for name in param.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_ray_up_keeps_the_dashboard_inside_and_brings_the_token():
    (cluster,) = documents("cluster.yaml")
    start = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_AUTH_MODE=token" in start
    assert "RAY_AUTH_MODE=token" in " ".join(cluster["worker_start_ray_commands"])
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]
    assert cluster["provider"]["use_internal_ips"]
    schema = json.loads((Path(__import__("ray").__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_the_image_runs_as_nobody_special_from_the_lock():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert "USER 1000" in lines
    assert lines.index("USER 1000") > max(n for n, line in enumerate(lines) if line.startswith("RUN"))
    assert any("--require-hashes -r runtime.txt" in line for line in lines)


def test_the_dashboard_draws_every_metric_and_no_other():
    text = (DEPLOY / "grafana.json").read_text()
    json.loads(text)
    assert set(re.findall(r"ray_(recapture_\w+)", text)) == set(NAMES)
