"""The deployment files: against KubeRay's own schemas, and against what they promise."""

import gzip
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import recapture
from recapture.cluster.bulk.metrics import NAMES

from .chart import DEPLOY, MANIFESTS, manifest
from .chart import documents as chart_documents

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "kuberay"
KINDS = {"job.yaml": ("RayJob", "rayjobs"), "service.yaml": ("RayService", "rayservices")}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def of_kind(name: str, kind: str) -> dict[str, Any]:
    (one,) = [each for each in documents(name) if each["kind"] == kind]
    return one


def ray_cluster(name: str) -> dict[str, Any]:
    spec = of_kind(name, KINDS[name][0])["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


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
    resource, schema = of_kind(name, kind), schema_of(plural)
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


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_no_root_no_account_token_and_limits(name):
    found = list(pods(documents(name)))
    assert len(found) >= 3
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            if container["name"] in ("ray-worker", "renderer"):
                assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
            if container.get("ports"):
                assert container["readinessProbe"]
                assert container["livenessProbe"]
        for mount in [mount for each in pod["containers"] for mount in each.get("volumeMounts", ())]:
            claims = {volume["name"] for volume in pod.get("volumes", ())} | {"data"}
            assert mount["name"] in claims


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_pods_refer_to_is_in_the_manifest_or_a_secret_that_the_guide_makes(name):
    made = {(each["kind"], each["metadata"]["name"]) for each in documents(name)}
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    for pod in pods(documents(name)):
        if "serviceAccountName" in pod:
            assert ("ServiceAccount", pod["serviceAccountName"]) in made
        for volume in pod.get("volumes", ()):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in made
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            for variable in container.get("env", ()):
                if key := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert f"--from-literal={key['key']}=" in guide
    assert "kind: Secret" not in (DEPLOY / name).read_text()


@pytest.mark.parametrize("name", KINDS)
def test_the_cluster_asks_for_a_token_from_a_secret_and_is_fenced_in(name):
    assert ray_cluster(name)["authOptions"] == {"mode": "token", "secretName": "recapture-ray-token"}
    policy = of_kind(name, "NetworkPolicy")
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    for group in [ray_cluster(name)["headGroupSpec"], *ray_cluster(name)["workerGroupSpecs"]]:
        assert selected <= group["template"]["metadata"]["labels"].items()
    open_ports = [rule.get("ports") for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert open_ports == ([[{"port": 8000, "protocol": "TCP"}]] if name == "service.yaml" else [])


def test_a_service_survives_its_head_and_a_job_begins_again():
    assert of_kind("job.yaml", "RayJob")["spec"]["backoffLimit"] > 0
    assert "gcsFaultToleranceOptions" not in ray_cluster("job.yaml")
    redis = ray_cluster("service.yaml")["gcsFaultToleranceOptions"]
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "recapture", "key": "redis-password"}
    host, port = redis["redisAddress"].split(":")
    services = {each["metadata"]["name"]: each for each in documents("service.yaml") if each["kind"] == "Service"}
    assert services[host]["spec"]["ports"][0]["port"] == int(port)


def test_versions_are_those_of_the_lock():
    locked = re.search(r"^ray(?:\[.*\])?==(\S+)", (ROOT / "locks" / "runtime.txt").read_text(), re.MULTILINE)[1]
    for name in KINDS:
        assert ray_cluster(name)["rayVersion"] == locked
    chart = yaml.safe_load((DEPLOY / "chart" / "Chart.yaml").read_text())
    assert chart["appVersion"] == recapture.__version__


def test_the_jobs_command_is_one_that_the_cli_accepts():
    from typer.main import get_command

    from recapture.cli.main import app

    words = shlex.split(of_kind("job.yaml", "RayJob")["spec"]["entrypoint"])
    assert words[:2] == ["recapture", "bulk"]
    command = get_command(app).commands["bulk"]
    given = command.make_context("bulk", words[2:]).params  # refuses what it does not know
    assert (given["manifest"], given["cluster"]) == ("s3://BUCKET/manifest.parquet", "auto")


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_what_the_chart_gives(name):
    pytest.importorskip("helm_python", reason="helm-python-sdk is not installed: the chart cannot be rendered")
    assert (DEPLOY / name).read_text() == manifest(MANIFESTS[name])


def test_the_chart_follows_its_values():
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed: the chart cannot be rendered")
    own = {
        "settings": {"webhook_hosts": ["*.example.com"], "upload_days": 30, "device": "auto"},
        "gpu": {"count": 0, "nodeSelector": {"pool": "render"}},
        "postgresql": {"enabled": False},
        "data": {"existingClaim": "footage"},
        "weights": {"pull": []},
        "ingress": {"enabled": True, "host": "films.example.com"},
        "serviceAccount": {"create": False, "name": "films"},
        "networkPolicy": False,
    }
    kinds = Counter(each["kind"] for each in chart_documents(own))
    assert kinds == {"Deployment": 4, "Service": 1, "PersistentVolumeClaim": 1, "Ingress": 1}
    (renderer,) = [pod for pod in pods(chart_documents(own)) if pod["containers"][0]["name"] == "renderer"]
    variables = {each["name"]: each.get("value") for each in renderer["containers"][0]["env"]}
    assert json.loads(variables["RECAPTURE_SERVE_WEBHOOK_HOSTS"]) == ["*.example.com"]
    assert variables["RECAPTURE_SERVE_UPLOAD_DAYS"] == "30"
    assert "HF_HUB_OFFLINE" not in variables
    assert "initContainers" not in renderer
    assert renderer["nodeSelector"] == {"pool": "render"}
    assert "nvidia.com/gpu" not in renderer["containers"][0]["resources"]["limits"]
    assert {volume["name"]: volume for volume in renderer["volumes"]}["data"]["persistentVolumeClaim"] == {
        "claimName": "footage"
    }
    bucket = chart_documents({"mode": "ray", "data": {"objects": "s3://bucket/films"}})
    assert [each["metadata"]["name"] for each in bucket if each["kind"] == "PersistentVolumeClaim"] == [
        "recapture-weights"
    ]
    assert "RECAPTURE_SERVE_OBJECTS" in json.dumps(bucket)
    with pytest.raises(helm.errors.HelmError, match="there are deployments, ray and bulk"):
        chart_documents({"mode": "swarm"})


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
