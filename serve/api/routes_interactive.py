"""Previews and estimates: a person waits for them, so the request does too. Workers of their own do them."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from ...client.schema import ClipOptions, Estimate, EstimateCreate, Input, Preview, PreviewCreate, Scene, SceneCreate
from ...engine.errors import InputError, RecaptureError
from ..jobs.options import check_camera, digest_of, run_config, sections
from ..jobs.records import Job
from .dependencies import Service, State, Tenant
from .error_handlers import Busy
from .responses import REFUSALS
from .routes_renders import clip_request, render_request

router = APIRouter(tags=["before a render"], responses=REFUSALS)


@router.post("/v1/previews")
async def create_preview(asked: PreviewCreate, http: Request, service: Service, tenant: Tenant) -> Preview:
    """Some moments of the clip from the new camera. The first of a clip takes its depth's time, the others do not."""
    request = await _about_clip(service, tenant, asked.input, asked.options)
    request["camera"] = check_camera(asked.camera)
    request["asked"] = asked.model_dump(include={"count", "frame", "max_side", "format", "tint"})
    return Preview.model_validate(await _done(service, tenant, "preview", request, http))


@router.post("/v1/scenes")
async def create_scene(asked: SceneCreate, http: Request, service: Service, tenant: Tenant) -> Scene:
    """One frame with its depth, small: what a 3D view lifts points from."""
    request = await _about_clip(service, tenant, asked.input, asked.options)
    request["scene"] = asked.model_dump(include={"frame", "max_side"})
    return Scene.model_validate(await _done(service, tenant, "preview", request, http))


@router.post("/v1/renders:estimate")
async def create_estimate(asked: EstimateCreate, http: Request, service: Service, tenant: Tenant) -> Estimate:
    """What a render would be and cost: sizes, windows, hole share, memory, and time measured on the worker."""
    config = run_config(service.settings.model, asked.options, 0, service.settings.options)
    camera = check_camera(asked.camera)
    request = await run_in_threadpool(render_request, service, tenant, asked.input, camera, config)
    return Estimate.model_validate(await _done(service, tenant, "estimate", request, http))


_WORKED_ON_S = 3600.0
"""How long a job may run after its caller got `busy`; jobs of dead processes end too."""


async def _about_clip(service: State, tenant: str, clip: Input, options: ClipOptions) -> dict[str, Any]:
    """The clip's fields in a preview's job."""
    where = await run_in_threadpool(clip_request, service, tenant, clip)
    return {**where, "sections": sections(options)}


async def _done(service: State, tenant: str, kind: str, request: dict[str, Any], http: Request) -> dict[str, Any]:
    """The result of a short job, which is forgotten as soon as it is known, or its caller has gone away.

    One that is worked on when the time is up ends all the same: its stages are then in the store, and who asks again
    waits for the rest alone. Maintenance removes its record.

    Raises:
        Busy: no worker was through with it in time.
        RecaptureError: what the worker says is wrong.
    """
    deadline_s = service.settings.interactive_wait_s + _WORKED_ON_S
    job, _ = await run_in_threadpool(
        service.jobs.submit, tenant, kind, request, digest_of(request), deadline_s=deadline_s
    )
    forget = service.jobs.delete
    try:
        job = await _final(service, job, http)
    except Busy:
        if not await http.is_disconnected():
            forget = service.jobs.withdraw
        raise
    finally:
        await run_in_threadpool(forget, job.id)
    if job.result is not None:
        return job.result
    error = job.error or {"code": "internal", "message": f"the {kind} was {job.status}", "param": None}
    kind_of_error = InputError if error.get("refused") else RecaptureError
    raise kind_of_error(error["message"], param=error["param"], code=error["code"])


async def _final(service: State, job: Job, http: Request) -> Job:
    until = time.monotonic() + service.settings.interactive_wait_s
    pause_s = 0.01
    while time.monotonic() < until and not await http.is_disconnected():
        await asyncio.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.1)
        current = await run_in_threadpool(service.jobs.get, job.tenant, job.id)
        if current is not None and current.final:
            return current
    raise Busy("no worker was through with it in time; ask again")
