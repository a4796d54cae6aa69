"""The HTTP side of the service: one FastAPI app over the records. It renders nothing and loads no network."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from .. import __version__
from . import routes_about, routes_interactive, routes_renders, routes_uploads
from .guard import OPEN, Guard
from .logs import set_up_logs
from .problems import add_handlers
from .settings import Settings
from .state import State


def create_api(settings: Settings) -> FastAPI:
    """The routes, with the guard around them.

    Raises:
        StoreError: the data folder or the database cannot be used.
    """
    state = State.open(settings)
    api = FastAPI(
        title="ReCapture", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        separate_input_output_schemas=False,
    )  # fmt: skip
    api.state.service = state
    for routes in (routes_interactive, routes_renders, routes_uploads, routes_about):
        api.include_router(routes.router)
    add_handlers(api)
    api.add_middleware(Guard, database=state.database, metrics=state.metrics, open_paths=OPEN)
    return api


def app_from_environment() -> ASGIApp:
    """For `uvicorn --factory`: settings come from the environment, as the workers' do."""
    set_up_logs()
    return create_api(Settings.from_environment())
