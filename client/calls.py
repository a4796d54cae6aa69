"""The verbs as values: what is sent and how the answer is read. Both clients send them, one waiting, one awaiting."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from . import schema
from .schema import (
    Camera,
    Estimate,
    EstimateCreate,
    Input,
    ModelList,
    Options,
    PresetList,
    Preview,
    PreviewCreate,
    Render,
    RenderCreate,
    RenderPage,
    Resample,
    Scene,
    SceneCreate,
    Upload,
    UploadCreate,
    Variant,
)

Answer = TypeVar("Answer", bound=BaseModel | None)
RenderRef = Render | str
UploadRef = Upload | str
"""An upload, its id, or the URI of a file that the service can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Answer]):
    """One request; `headers` hold the idempotency key, so that every try of the call has the same."""

    method: str
    path: str
    answer: type[Answer]
    json: dict[str, Any] | None = None
    content: bytes | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def read(self, content: bytes) -> Answer:
        """The typed answer from the body of a response."""
        return self.answer.model_validate_json(content) if issubclass(self.answer, BaseModel) else self.answer()


def _get(path: str, answer: type[Answer], **params: str | int | None) -> Call[Answer]:
    return Call(method="GET", path=path, answer=answer, params={k: v for k, v in params.items() if v is not None})


def _post(path: str, answer: type[Answer], body: BaseModel | None = None, key: str | None = None) -> Call[Answer]:
    return Call(
        method="POST",
        path=path,
        answer=answer,
        json=None if body is None else schema.to_json(body),
        headers={"Idempotency-Key": key or str(uuid.uuid4())},
    )


def _delete(path: str) -> Call[None]:
    return Call(method="DELETE", path=path, answer=type(None))


def id_of(thing: Render | Upload | str) -> str:
    """The id of a record, or the id itself."""
    return thing if isinstance(thing, str) else thing.id


def as_input(upload: UploadRef) -> Input:
    """An upload or its id, or the URI of a file, as a request names it."""
    name = id_of(upload)
    return Input(upload=name) if name.startswith("upl_") else Input(uri=name)


def create_upload(body: UploadCreate, idempotency_key: str | None) -> Call[Upload]:
    """Announce a clip: `POST /v1/uploads`."""
    return _post("/v1/uploads", Upload, body, idempotency_key)


def retrieve_upload(upload: UploadRef) -> Call[Upload]:
    """`GET /v1/uploads/{id}`."""
    return _get(f"/v1/uploads/{id_of(upload)}", Upload)


def send_part(upload: UploadRef, offset: int, part: bytes) -> Call[Upload]:
    """Send bytes of an upload from `offset` on: `PATCH /v1/uploads/{id}`."""
    return Call(
        method="PATCH",
        path=f"/v1/uploads/{id_of(upload)}",
        answer=Upload,
        content=part,
        headers={"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"},
    )


def delete_upload(upload: UploadRef) -> Call[None]:
    """`DELETE /v1/uploads/{id}`."""
    return _delete(f"/v1/uploads/{id_of(upload)}")


def create_render(
    upload: UploadRef,
    camera: Camera,
    options: Options | None,
    seed: int,
    model: str | None,
    deadline_s: int | None,
    webhook_url: str | None,
    idempotency_key: str | None,
) -> Call[Render]:
    """`POST /v1/renders`."""
    body = RenderCreate(
        input=as_input(upload),
        camera=camera,
        options=options or Options(),
        seed=seed,
        model=model,
        deadline_s=deadline_s,
        webhook_url=webhook_url,
    )
    return _post("/v1/renders", Render, body, idempotency_key)


def retrieve_render(render: RenderRef) -> Call[Render]:
    """`GET /v1/renders/{id}`."""
    return _get(f"/v1/renders/{id_of(render)}", Render)


def list_renders(limit: int, after: str | None, status: str | None) -> Call[RenderPage]:
    """One page of renders, newest first: `GET /v1/renders`."""
    return _get("/v1/renders", RenderPage, limit=limit, after=after, status=status)


def cancel_render(render: RenderRef) -> Call[Render]:
    """`POST /v1/renders/{id}/cancel`."""
    return _post(f"/v1/renders/{id_of(render)}/cancel", Render)


def resample_render(render: RenderRef, body: Resample, idempotency_key: str | None) -> Call[Render]:
    """Another sample of a completed render: `POST /v1/renders/{id}/resample`."""
    return _post(f"/v1/renders/{id_of(render)}/resample", Render, body, idempotency_key)


def delete_render(render: RenderRef) -> Call[None]:
    """`DELETE /v1/renders/{id}`."""
    return _delete(f"/v1/renders/{id_of(render)}")


def content_path(render: RenderRef, variant: Variant) -> str:
    """Path of one file of a render."""
    return f"/v1/renders/{id_of(render)}/content?variant={variant}"


def events_path(render: RenderRef) -> str:
    """Path of a render's server-sent events."""
    return f"/v1/renders/{id_of(render)}/events"


def estimate(upload: UploadRef, camera: Camera, options: Options | None) -> Call[Estimate]:
    """`POST /v1/renders:estimate`."""
    body = EstimateCreate(input=as_input(upload), camera=camera, options=options or Options())
    return _post("/v1/renders:estimate", Estimate, body)


def preview(body: PreviewCreate) -> Call[Preview]:
    """`POST /v1/previews`."""
    return _post("/v1/previews", Preview, body)


def scene(body: SceneCreate) -> Call[Scene]:
    """`POST /v1/scenes`."""
    return _post("/v1/scenes", Scene, body)


def models() -> Call[ModelList]:
    """`GET /v1/models`."""
    return _get("/v1/models", ModelList)


def presets() -> Call[PresetList]:
    """`GET /v1/presets`."""
    return _get("/v1/presets", PresetList)
