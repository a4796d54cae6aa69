"""`/v1/uploads`: clips arrive in parts; a broken connection costs the part under way at most."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ...client.schema import Clip, ErrorBody, Problem, Upload, UploadCreate
from ...engine.video.clip import ClipInfo
from ..uploads.uploads import TooLarge, UploadRecord
from .dependencies import Key, Service, State, Tenant
from .error_handlers import Missing
from .responses import REFUSALS

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], responses=REFUSALS)


@router.post("", status_code=201)
def create_upload(asked: UploadCreate, service: Service, tenant: Tenant, response: Response, key: Key = None) -> Upload:
    """Announce a clip; its bytes follow by PATCH."""
    record = service.uploads.create(tenant, asked, key=key)
    response.headers["Location"] = f"/v1/uploads/{record.id}"
    return upload_of(service, record)


@router.get("/{upload}")
def retrieve_upload(upload: str, service: Service, tenant: Tenant) -> Upload:
    return upload_of(service, find_upload(service, tenant, upload))


@router.patch(
    "/{upload}",
    responses={408: {"model": ErrorBody, "description": "Nothing arrived for a while; go on at the upload's offset."}},
    openapi_extra={
        "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def append_to_upload(
    upload: str,
    request: Request,
    service: Service,
    tenant: Tenant,
    offset: Annotated[int, Header(alias="Upload-Offset", ge=0, le=1 << 40)],
) -> Upload:
    """Send bytes from `Upload-Offset` on; the last of them decides whether the clip can be used."""
    record = await run_in_threadpool(find_upload, service, tenant, upload)
    appending = service.uploads.appending(record, offset)
    file = await run_in_threadpool(appending.__enter__)  # opening and syncing a file may take its time
    try:
        arrived = offset
        async for chunk in _chunks(request, service.settings.upload_silence_s):
            arrived += len(chunk)
            if arrived > record.bytes:
                raise TooLarge(f"the upload was announced with {record.bytes} bytes", param="bytes")
            await run_in_threadpool(file.write, chunk)
            service.metrics.uploaded.inc(len(chunk))
    finally:
        await run_in_threadpool(appending.__exit__, None, None, None)
    if arrived == record.bytes:
        async with service.deciding:
            record = await run_in_threadpool(service.uploads.finish, record)
    return await run_in_threadpool(upload_of, service, record)


async def _chunks(request: Request, silence_s: float) -> AsyncIterator[bytes]:
    """The body as it arrives; a connection that died without a word would hold the upload for ever."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(silence_s):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise HTTPException(
                408, f"nothing arrived for {silence_s:g} s; go on at the upload's `offset`", {"Connection": "close"}
            ) from None
        if chunk is None:
            return
        yield chunk


@router.delete("/{upload}", status_code=204)
def delete_upload(upload: str, service: Service, tenant: Tenant) -> None:
    """Renders of it that have not begun will fail."""
    service.uploads.delete(find_upload(service, tenant, upload))


def find_upload(service: State, tenant: str, upload: str) -> UploadRecord:
    record = service.uploads.get(tenant, upload) if re.fullmatch(r"upl_[0-9a-f]{24}", upload) else None
    if record is None:
        raise Missing("this upload does not exist", param="upload")
    return record


def upload_of(service: State, record: UploadRecord) -> Upload:
    return Upload(
        id=record.id,
        status=record.status,  # pyright: ignore[reportArgumentType]
        bytes=record.bytes,
        offset=service.uploads.arrived(record),
        sha256=record.sha256,
        filename=record.filename,
        clip=None if record.clip is None else _clip(ClipInfo.from_json(record.clip)),
        error=None if record.error is None else Problem.model_validate(record.error),
        created_at=record.created_at,
    )


def _clip(info: ClipInfo) -> Clip:
    return Clip(
        width=info.width,
        height=info.height,
        frames=info.frame_count,
        fps=float(info.rate),
        duration_s=info.duration_s,
        codec=info.codec,
        has_audio=info.has_audio,
    )
