"""The ingress process: the app behind uvicorn. `python -m recapture.serve.processes.ingress`; settings are in the environment."""

import uvicorn

from ..api.app import create_api
from ..logs import set_up_logs
from ..settings import Settings


def main() -> None:
    """Serve until SIGTERM; requests under way get some seconds, followers of events reconnect by themselves."""
    settings = Settings.of_process()
    set_up_logs()
    uvicorn.run(
        create_api(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        server_header=False,
    )


if __name__ == "__main__":
    main()
