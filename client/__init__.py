"""Python client of the ReCapture service. It loads neither torch nor ray nor numpy.

>>> client = Client("https://render.example.com", api_key="rk_...")
>>> upload = client.uploads.create("clip.mp4")
>>> render = client.renders.create(upload, camera="arc(15deg)")
>>> client.renders.wait(render)
>>> client.renders.download(render, "video.mp4")
"""

from .asynchronous import AsyncClient
from .errors import APIError, ClientError, ConnectionFailed, DownloadDamaged, RenderFailed, WaitTimeout
from .schema import (
    CameraFile,
    Estimate,
    EstimateCreate,
    Options,
    Preview,
    PreviewCreate,
    Render,
    RenderCreate,
    Upload,
    WebhookEvent,
)
from .synchronous import Client
from .webhooks import WebhookInvalid, verify_webhook

__all__ = [
    "APIError",
    "AsyncClient",
    "CameraFile",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "DownloadDamaged",
    "Estimate",
    "EstimateCreate",
    "Options",
    "Preview",
    "PreviewCreate",
    "Render",
    "RenderCreate",
    "RenderFailed",
    "Upload",
    "WaitTimeout",
    "WebhookEvent",
    "WebhookInvalid",
    "verify_webhook",
]
