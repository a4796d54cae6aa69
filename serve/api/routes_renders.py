"""`/v1/renders`: ask for one, look at it, follow it, stop it, take its files."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable, Response

from ...client.schema import ErrorBody, Input, Render, RenderCreate, RenderPage, Resample, Status, Variant
from ...engine.config import RunConfig
from ...engine.errors import InputError, ModelError
from ..artifacts import CONTENT
from ..jobs.options import check_camera, digest_of, resampled, run_config
from ..jobs.records import Job
from ..webhooks import has_secret
from .dependencies import Key, Service, State, Tenant
from .error_handlers import Missing, NotNow
from .responses import REFUSALS, refusals_as_json, render_of
from .routes_uploads import find_upload

router = APIRouter(prefix="/v1/renders", tags=["renders"], responses=REFUSALS)

_LOOK_EVERY_S = 0.25
_SANDBOX = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; media-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
"""For the report's page: it may draw itself and nothing else, least of all call this service."""


@router.post("", status_code=202)
def create_render(asked: RenderCreate, service: Service, tenant: Tenant, response: Response, key: Key = None) -> Render:
    """Accept a render. From here on it survives the restart of any process."""
    model = service.settings.model
    if asked.model not in (None, model):
        raise ModelError(f"{asked.model!r} is not served here; {model} is", param="model", code="model_not_served")
    config = run_config(model, asked.options, asked.seed, service.settings.options)
    request = render_request(
        service, tenant, asked.input, check_camera(asked.camera), config, webhook_url=asked.webhook_url
    )
    return _submit(service, tenant, request, key, asked.deadline_s, response)


@router.get("")
def list_renders(
    service: Service,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(pattern=r"^rnd_[0-9a-f]{24}$")] = None,
    status: Status | None = None,
) -> RenderPage:
    """The newest first; `after` goes on where the page before ended."""
    page = service.jobs.page(tenant, "render", limit=limit + 1, after=after, status=status)
    more = len(page) > limit
    return RenderPage(
        data=[render_of(job) for job in page[:limit]], has_more=more, next=page[limit - 1].id if more else None
    )


@router.get("/{render}")
def retrieve_render(render: str, service: Service, tenant: Tenant) -> Render:
    return render_of(find_render(service, tenant, render))


@router.post("/{render}/cancel")
def cancel_render(render: str, service: Service, tenant: Tenant) -> Render:
    """Stop it within one step; one that has ended stays as it ended."""
    return render_of(service.jobs.cancel(find_render(service, tenant, render).id))


@router.post("/{render}/resample", status_code=202)
def resample_render(
    render: str, asked: Resample, service: Service, tenant: Tenant, response: Response, key: Key = None
) -> Render:
    """Another sample of a completed render: its adapters stay as they are tuned, so this takes seconds."""
    job = find_render(service, tenant, render)
    if job.status != "completed":
        raise NotNow(f"the render is {job.status}; only a completed one can be sampled again")
    assert job.result is not None
    config = resampled(RunConfig.from_json(job.request["config"]), asked, depth=job.result.get("depth"))
    uri = job.request.get("uri")
    source = Input(upload=job.request["input"]) if uri is None else Input(uri=uri)
    request = render_request(
        service, tenant, source, job.request["camera"], config, parent=job, webhook_url=asked.webhook_url
    )
    return _submit(service, tenant, request, key, None, response)


@router.delete("/{render}", status_code=204)
def delete_render(render: str, service: Service, tenant: Tenant) -> None:
    """Stop it and remove its files."""
    job = service.jobs.cancel(find_render(service, tenant, render).id)
    service.jobs.delete(job.id)
    service.uploads.files.remove_render(job.id)


@router.get(
    "/{render}/content",
    response_class=FileResponse,
    responses={
        206: {"description": "A part of it."},
        304: {"description": "Unchanged."},
        416: {"model": ErrorBody, "description": "No such part."},
    },
)
def render_content(
    render: str,
    service: Service,
    tenant: Tenant,
    variant: Variant = "video",
    if_none_match: Annotated[str | None, Header(alias="If-None-Match")] = None,
) -> Response:
    """One file of a completed render; it never changes, its ETag is its sha256."""
    job = find_render(service, tenant, render)
    if job.result is None:
        raise NotNow(f"the render is {job.status}; it has no files")
    name, kind = CONTENT[variant]
    about = job.result["content"][variant]
    etag = f'"{about["sha256"]}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers=headers)
    if variant == "page":
        headers["Content-Security-Policy"] = _SANDBOX
    try:
        path = service.uploads.files.content(job.id, int(job.result["folder"]), name)
        return _File(path, media_type=kind, headers=headers, stat_result=path.stat())
    except FileNotFoundError:  # deleted since its record was read
        raise Missing("this render does not exist", param="render") from None


class _File(FileResponse):
    """With its refusals in the envelope."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            raise HTTPException(400, "the Range is malformed; give bytes=FIRST-LAST") from None
        except RangeNotSatisfiable:
            whole = {"Content-Range": f"bytes */{file_size}"}
            raise HTTPException(416, f"the file ends before this part; it has {file_size} bytes", whole) from None


def _watched(render: str, service: Service, tenant: Tenant) -> str:
    find_render(service, tenant, render)  # before the stream begins, while a refusal can still have its status
    return render


@router.get(
    "/{render}/events",
    response_class=EventSourceResponse,
    responses={**refusals_as_json(), 200: {"description": "A render an event, each time it changes."}},
)
async def render_events(
    render: Annotated[str, Depends(_watched)],
    service: Service,
    tenant: Tenant,
    last: Annotated[int, Header(alias="Last-Event-ID", ge=0, le=2**31 - 1)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Follow it to its end. An event's id is the render's revision: `Last-Event-ID` goes on behind what was seen."""
    while True:
        job = await run_in_threadpool(service.jobs.get, tenant, render, "render")
        if job is None:  # deleted while somebody watched
            return
        if job.revision > last:
            last = job.revision
            yield ServerSentEvent(data=render_of(job), event="render", id=str(last))
        if job.final:
            return
        await asyncio.sleep(_LOOK_EVERY_S)


def find_render(service: State, tenant: str, render: str) -> Job:
    # A name that is none is not looked up: PostgreSQL would stumble over a NUL in it.
    job = service.jobs.get(tenant, render, "render") if re.fullmatch(r"rnd_[0-9a-f]{24}", render) else None
    if job is None:
        raise Missing("this render does not exist", param="render")
    return job


def render_request(
    service: State,
    tenant: str,
    source: Input,
    camera: str | dict[str, Any],
    config: RunConfig,
    *,
    parent: Job | None = None,
    webhook_url: str | None = None,
) -> dict[str, Any]:
    """A job's copy of a request: everything a worker needs, and nothing that can change meanwhile.

    Raises:
        Missing, InputError: as `clip_request`; the webhook may not be sent there, or not be checked.
    """
    if webhook_url is not None:
        service.outbound.check(webhook_url, param="webhook_url")
        if not has_secret(service.database, tenant):
            raise InputError(
                "this tenant has no secret to sign webhooks with; the operator creates one with `recapture keys webhook-secret`",
                param="webhook_url",
                code="no_webhook_secret",
            )
    where = clip_request(service, tenant, source)
    if parent is not None and where["sha256"] is None:
        where["sha256"] = parent.result and parent.result["clip_sha256"]
    kept = config.to_json()
    return {
        **where,
        "camera": camera,
        "config": kept,
        "config_digest": digest_of(kept),
        "seed": config.seed if config.sample.seed is None else config.sample.seed,
        "model": service.settings.model,
        "resampled_from": parent and parent.id,
        # The render whose tuning this goes on from, however often it was sampled since.
        "tuned_by": parent and (parent.request.get("tuned_by") or parent.id),
        **({} if webhook_url is None else {"webhook_url": webhook_url}),
    }


def clip_request(service: State, tenant: str, source: Input) -> dict[str, Any]:
    """The location of a job's clip, as the job stores it.

    Raises:
        Missing, InputError: the upload is not there, or not ready; the tenant may not name the URI.
    """
    if source.uri is not None:
        service.roots.find(tenant, source.uri)
        return {"uri": source.uri, "sha256": None}  # of what the worker will find there
    record = find_upload(service, tenant, source.upload or "")
    if record.status != "ready":
        raise InputError(f"the upload is {record.status}", param="input.upload", code="upload_not_ready")
    return {"input": record.id, "sha256": record.sha256}


def _submit(
    service: State, tenant: str, request: dict[str, Any], key: str | None, deadline_s: int | None, response: Response
) -> Render:
    # By the clip's bytes and not by its upload: the same clip sent again is the same request.
    fingerprint = digest_of({**request, "input": None, "deadline_s": deadline_s})
    job, new = service.jobs.submit(tenant, "render", request, fingerprint, key=key, deadline_s=deadline_s)
    if new and request["tuned_by"] is not None:
        service.offer(job)
    response.headers["Location"] = f"/v1/renders/{job.id}"
    return render_of(job)
