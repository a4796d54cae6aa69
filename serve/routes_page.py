"""The page at `/`: files of this package, the same for everybody; what it shows it asks for with the caller's key."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

_FOLDER = Path(__file__).parent / "page"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/service.js": ("service.js", "text/javascript; charset=utf-8"),
}
"""By path; nothing else of the package can be asked for."""

router = APIRouter(include_in_schema=False)


def _add(path: str, name: str, kind: str) -> None:
    @router.get(path)
    def page() -> FileResponse:
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
        return FileResponse(_FOLDER / name, media_type=kind, headers=headers)


for _path, (_name, _kind) in FILES.items():
    _add(_path, _name, _kind)
