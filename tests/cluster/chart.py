"""The Helm chart, rendered; `python -m tests.cluster.chart` writes the manifests beside it for those who have no Helm."""

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "cluster" / "deploy"
MANIFESTS = {"deployments.yaml": "deployments", "service.yaml": "ray", "job.yaml": "bulk"}
RELEASE = "recapture"

_HEAD = """\
# Made from chart/ by `make manifests`, as `helm template {release} chart --set mode={mode}` prints it.
# What it needs before, and what to change: docs/kubernetes.md.
"""


def render(values: dict[str, Any]) -> str:
    """The chart's documents as one text.

    Raises:
        helm_python.errors.HelmError: a template fails.
    """
    from helm_python.chart import Chart

    with Chart.load(DEPLOY / "chart") as chart:
        parts = chart.render(values, name=RELEASE, namespace=RELEASE)
    documents = [
        "\n".join(line for line in text.splitlines() if line.strip())
        for name in ("common", "stateful", "deployments", "ray", "network")
        for text in parts[f"recapture/templates/{name}.yaml"].split("\n---\n")
        if text.strip(" \n-")
    ]
    return "\n---\n".join(documents) + "\n"


def documents(values: dict[str, Any]) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(values)))


def manifest(mode: str) -> str:
    return _HEAD.format(release=RELEASE, mode=mode) + render({"mode": mode})


def main() -> None:
    for name, mode in MANIFESTS.items():
        (DEPLOY / name).write_text(manifest(mode))


if __name__ == "__main__":
    main()
