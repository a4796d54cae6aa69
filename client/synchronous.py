"""Every verb of the service, waiting for the answer. Made from `asynchronous.py` by `make client`: change that one."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx2

from . import calls
from .calls import Answer, Call, RenderRef, UploadRef, id_of
from .connection import DEFAULT_TIMEOUT, next_poll_s, settings
from .errors import (
    APIError,
    ClientError,
    ConnectionFailed,
    DownloadDamaged,
    NotFound,
    RenderFailed,
    UploadFailed,
    WaitTimeout,
    error_of,
)
from .files import ClipFile, PartFile
from .retries import MAX_RETRIES, part_pause_s, pause_s
from .schema import (
    Camera,
    ClipOptions,
    Estimate,
    Model,
    Options,
    Preset,
    Preview,
    PreviewCreate,
    Render,
    RenderPage,
    Resample,
    Scene,
    SceneCreate,
    Upload,
    Variant,
)
from .sync_side import OnlyHere, in_thread, sleep


class Client(OnlyHere):
    """A connection to the service.

    Args:
        base_url: of the service; `RECAPTURE_URL` if absent.
        api_key: `RECAPTURE_API_KEY` if absent. Never shown in a repr.
        max_retries: of a call that found no answer, or 408, 429 or 5xx.
        timeout: seconds a single answer may take.
        http: a client of one's own, with proxies or certificates; its base_url and headers are left alone.

    Raises:
        ClientError: no address or key was given.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        max_retries: int = MAX_RETRIES,
        timeout: float | httpx2.Timeout = DEFAULT_TIMEOUT,
        http: httpx2.Client | None = None,
    ) -> None:
        self.base_url, self._headers = settings(base_url, api_key)
        self.max_retries = max_retries
        self._http = http or httpx2.Client(timeout=timeout)
        self.uploads, self.renders = Uploads(self), Renders(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[Model]:
        """The models that the service renders with."""
        answer = self.send(calls.models())
        return answer.data

    def presets(self) -> list[Preset]:
        """The camera moves that `camera` understands."""
        answer = self.send(calls.presets())
        return answer.data

    def preview(
        self,
        upload: UploadRef,
        camera: Camera,
        *,
        options: ClipOptions | None = None,
        count: int = 5,
        frame: int | None = None,
        max_side: int = 384,
        format: str = "webp",
        tint: bool = True,
    ) -> Preview:
        """What the new camera sees of the clip, at some moments; nothing is rendered."""
        body = PreviewCreate.model_validate(
            {
                "input": calls.as_input(upload),
                "camera": camera,
                "options": options or ClipOptions(),
                "count": count,
                "frame": frame,
                "max_side": max_side,
                "format": format,
                "tint": tint,
            }
        )
        return self.send(calls.preview(body))

    def scene(
        self, upload: UploadRef, *, options: ClipOptions | None = None, frame: int = 0, max_side: int = 384
    ) -> Scene:
        """One frame with its depth, small: what a 3D view lifts points from."""
        body = SceneCreate(
            input=calls.as_input(upload), options=options or ClipOptions(), frame=frame, max_side=max_side
        )
        return self.send(calls.scene(body))

    def estimate(self, upload: UploadRef, camera: Camera, *, options: Options | None = None) -> Estimate:
        """Sizes, windows, memory, time and hole share of a render, before it is paid for."""
        return self.send(calls.estimate(upload, camera, options))

    def send(self, call: Call[Answer]) -> Answer:
        """Send a call, again where that is safe and may help.

        Raises:
            APIError: the service refused.
            ConnectionFailed: there was no answer.
        """
        retries = 0
        while True:
            try:
                response = self._http.request(
                    call.method,
                    self.base_url + call.path,
                    params=dict(call.params),
                    json=call.json,
                    content=call.content,
                    headers={**self._headers, **call.headers},
                )
            except httpx2.TransportError as error:
                failure: ClientError = ConnectionFailed(
                    f"no answer from {self.base_url}: {error or type(error).__name__}"
                )
            else:
                if response.is_success:
                    return call.read(response.content)
                failure = error_of(response)
            if call.method == "DELETE" and retries and isinstance(failure, NotFound):
                return call.read(b"")  # the try before this one did it
            pause = pause_s(failure, retries, self.max_retries)
            if pause is None:
                raise failure
            sleep(pause)
            retries += 1


class Uploads:
    """Clips on the service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, path: str | Path, *, once: bool = False) -> Upload:
        """Send a clip; what arrived before a broken connection is not sent again.

        Args:
            once: these bytes are one upload, however often they are sent.

        Raises:
            UploadFailed: it arrived, and is no clip that the service can use.
        """
        clip = in_thread(ClipFile, Path(path))
        upload = self._client.send(calls.create_upload(clip.request, f"clip-{clip.sha256}" if once else None))
        lost = 0
        while upload.status == "pending":
            offset = upload.offset
            try:
                upload = self._client.send(calls.send_part(upload, offset, clip.part(offset)))
            except (ConnectionFailed, APIError) as failure:
                pause = part_pause_s(failure, lost, self._client.max_retries)
                if pause is None:
                    raise
                sleep(pause)
                upload = self.retrieve(upload)
            lost = 0 if upload.offset > offset else lost + 1
        if upload.status == "failed":
            raise UploadFailed(upload)
        return upload

    def retrieve(self, upload: UploadRef) -> Upload:
        """The upload as the service has it now."""
        return self._client.send(calls.retrieve_upload(upload))

    def delete(self, upload: UploadRef) -> None:
        """Delete the upload and its file."""
        self._client.send(calls.delete_upload(upload))


class Renders:
    """Renders of the caller's tenant."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        upload: UploadRef,
        camera: Camera,
        *,
        options: Options | None = None,
        seed: int = 0,
        model: str | None = None,
        deadline_s: int | None = None,
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> Render:
        """Ask for a render; it is accepted when this returns, and done when `wait` does.

        Args:
            webhook_url: where the service sends a signed message when it has ended.
            idempotency_key: two calls with one key are one render, also from two processes.
        """
        return self._client.send(
            calls.create_render(upload, camera, options, seed, model, deadline_s, webhook_url, idempotency_key)
        )

    def retrieve(self, render: RenderRef) -> Render:
        """The render as the service has it now."""
        return self._client.send(calls.retrieve_render(render))

    def list(self, *, limit: int = 20, after: str | None = None, status: str | None = None) -> RenderPage:
        """The newest first."""
        return self._client.send(calls.list_renders(limit, after, status))

    def cancel(self, render: RenderRef) -> Render:
        """What has ended already stays as it ended."""
        return self._client.send(calls.cancel_render(render))

    def delete(self, render: RenderRef) -> None:
        """Cancel it if it runs, and remove its files."""
        self._client.send(calls.delete_render(render))

    def resample(
        self,
        render: RenderRef,
        *,
        seed: int | None = None,
        sample_steps: int | None = None,
        sdedit_sigma: float | None = None,
        sdedit_steps: int | None = None,
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> Render:
        """Another sample of a completed render, with its adapters as they are tuned."""
        body = Resample(
            seed=seed,
            sample_steps=sample_steps,
            sdedit_sigma=sdedit_sigma,
            sdedit_steps=sdedit_steps,
            webhook_url=webhook_url,
        )
        return self._client.send(calls.resample_render(render, body, idempotency_key))

    def wait(self, render: RenderRef, *, timeout_s: float | None = None) -> Render:
        """Return it when it is completed.

        Raises:
            RenderFailed: it ended otherwise.
            WaitTimeout: it goes on, and may be waited for again.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        polls = 0
        while not (current := self.retrieve(render)).done:
            if until is not None and time.monotonic() >= until:
                raise WaitTimeout(f"{current.id} is {current.status} after {timeout_s:g} s, at {current.progress:.0%}")
            sleep(next_poll_s(polls))
            polls += 1
        if current.status != "completed":
            raise RenderFailed(current)
        return current

    def events(self, render: RenderRef) -> Iterator[Render]:
        """The render each time it changes, until it has ended; a broken stream is taken up where it broke."""
        last, retries = "", 0
        while True:
            headers = {**self._client._headers, **({"Last-Event-ID": last} if last else {})}
            try:
                with self._client._http.sse(
                    self._client.base_url + calls.events_path(render), headers=headers
                ) as source:
                    if not source.response.is_success:
                        source.response.read()
                        raise error_of(source.response)
                    for event in source:
                        last, retries = event.id or last, 0
                        current = Render.model_validate_json(event.data)
                        yield current
                        if current.done:
                            return
                failure: ClientError = ConnectionFailed("the stream of events ended early")
            except httpx2.TransportError as error:
                failure = ConnectionFailed(f"the stream of events broke: {error or type(error).__name__}")
            except APIError as error:
                failure = error
            pause = pause_s(failure, retries, self._client.max_retries)
            if pause is None:
                raise failure
            sleep(pause)
            retries += 1

    def download(self, render: RenderRef, target: str | Path, *, variant: Variant = "video") -> Path:
        """Bring one file of a completed render; a download that broke off goes on where it was.

        Raises:
            DownloadDamaged: what arrived is not what was published, twice.
            ClientError: the render has no such file.
        """
        current = self.retrieve(render)
        if variant not in current.content:
            raise ClientError(f"{current.id} is {current.status} and has no {variant}")
        part = PartFile(Path(target), current.content[variant])
        retries = damaged = 0
        while True:
            before = part.arrived
            try:
                if not part.complete:
                    self._fetch(id_of(current), variant, part)
                if part.complete:
                    return in_thread(part.publish)
                failure: ClientError = ConnectionFailed("the download ended early")
            except httpx2.TransportError as error:
                failure = ConnectionFailed(f"the download broke: {error or type(error).__name__}")
            except DownloadDamaged:
                damaged += 1
                if damaged > 1:
                    raise
                continue
            except APIError as error:
                failure = error
            retries = 0 if part.arrived > before else retries
            pause = pause_s(failure, retries, self._client.max_retries)
            if pause is None:
                raise failure
            sleep(pause)
            retries += 1

    def _fetch(self, render: str, variant: Variant, part: PartFile) -> None:
        url = self._client.base_url + calls.content_path(render, variant)
        headers = {**self._client._headers, **part.headers}
        with self._client._http.stream("GET", url, headers=headers) as response:
            if not response.is_success:
                response.read()
                raise error_of(response)
            with part.path.open(part.mode(response.status_code)) as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
