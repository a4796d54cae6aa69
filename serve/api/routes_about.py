"""Routes about the service: models, presets, health, metrics."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response

from ...client.schema import Health, Model, ModelList, Preset, PresetList, PresetParameter
from ...engine.cameras import presets
from ...engine.errors import StoreError
from .. import migrations
from .dependencies import Service, State
from .responses import REFUSALS

router = APIRouter(tags=["about"])
KEYED: dict[int | str, dict[str, Any]] = {401: REFUSALS[401]}


@router.get("/healthz")
def health() -> Health:
    """Whether this process answers."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health}})
def ready(service: Service) -> Response:
    """Whether a render that is asked for now would be done: database, disk and workers of each kind."""
    checks = {name: check(service) for name, check in (("database", _database), ("disk", _disk), ("workers", _workers))}
    well = all(said == "ok" for said in checks.values())
    answer = Health(status="ok" if well else "unavailable", checks=checks)
    return JSONResponse(answer.model_dump(), status_code=200 if well else 503)


@router.get("/metrics", responses={**KEYED, 200: {"content": {"text/plain": {}}}}, response_class=Response)
def metrics(service: Service) -> Response:
    """In Prometheus' text format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/models", responses=KEYED)
def list_models(service: Service) -> ModelList:
    """The models that live workers render with."""
    known = {worker.model["id"]: worker.model for worker in service.workers.live() if "render" in worker.kinds}
    return ModelList(data=[Model.model_validate(model) for model in known.values()])


@router.get("/v1/presets", responses=KEYED)
def list_presets() -> PresetList:
    """Camera moves and their parameters."""
    return PresetList(
        data=[
            Preset(
                name=preset.name,
                summary=preset.summary,
                parameters=[
                    PresetParameter(
                        name=p.name,
                        unit=p.unit,
                        default=p.default,
                        low=_finite(p.low),
                        high=_finite(p.high),
                        words=list(p.words),
                        help=p.help,
                    )
                    for p in preset.parameters
                ],
            )
            for preset in presets()
        ]
    )


def _finite(bound: float) -> float | None:
    return bound if abs(bound) < float("inf") else None


def _database(service: State) -> str:
    try:
        return "ok" if service.database.revision() == migrations.head() else "of another version"
    except (SQLAlchemyError, StoreError):
        return "not reachable"


def _disk(service: State) -> str:
    try:
        service.uploads.files.check()
        return "ok"
    except OSError:
        return "not writable" if service.settings.objects is None else "not usable"


def _workers(service: State) -> str:
    try:
        kinds = {kind for worker in service.workers.live() for kind in worker.kinds}
    except SQLAlchemyError:
        return "not known"
    missing = {"render", "preview", "estimate"} - kinds
    return "ok" if not missing else f"none for {', '.join(sorted(missing))}"
