"""The HTTP side of the service: one FastAPI app over the records. It renders nothing and loads no network."""

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from ... import __version__
from ...engine.config import OPTIONS
from ..settings import Settings
from . import routes_about, routes_interactive, routes_page, routes_renders, routes_uploads
from .dependencies import Offer, State
from .error_handlers import add_handlers
from .middleware import OPEN, Guard

if TYPE_CHECKING:
    from ray.serve import Application


class Api(FastAPI):
    """FastAPI whose schema describes the options of a run as the engine's table does."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        helps = {option.request_name: option.help for option in OPTIONS.values() if option.request}
        for name in ("ClipOptions", "Options", "Resample"):
            for field, about in schema["components"]["schemas"][name]["properties"].items():
                if field in helps:
                    about["description"] = helps[field]
        return schema


def create_api(settings: Settings, *, offer: Offer = lambda job: None) -> FastAPI:
    """The routes, with the guard around them.

    Args:
        offer: called with each accepted resample.

    Raises:
        StoreError: the data folder or the database cannot be used.
        InputError: a folder of the allow-list cannot be used.
    """
    state = State.open(settings, offer)
    api = Api(
        title="ReCapture",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        separate_input_output_schemas=False,
    )
    api.state.service = state
    for routes in (routes_interactive, routes_renders, routes_uploads, routes_about, routes_page):
        api.include_router(routes.router)
    add_handlers(api)
    api.add_middleware(Guard, database=state.database, metrics=state.metrics, open_paths=OPEN)
    return api


def build_app(args: Settings) -> "Application":
    """The service for Ray Serve: `serve run recapture.serve.api.app:build_app data=/srv/recapture model=tiny`.

    Raises:
        InputError: SQLite on more than one node.
    """
    from ..processes.deployments import application

    return application(args)
