"""The page at `/`: files of this package, the same for everybody; what it shows it asks for with the caller's key."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

_FOLDER = Path(__file__).parents[1] / "page"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
FILES = {
    "/" if path.name == "index.html" else f"/page/{path.relative_to(_FOLDER).as_posix()}": path
    for path in sorted(_FOLDER.rglob("*"))
    if path.suffix in _KINDS
}
"""By path; nothing else of the package can be asked for."""

router = APIRouter(include_in_schema=False)


def _add(url: str, path: Path) -> None:
    @router.get(url)
    def page() -> FileResponse:
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
        return FileResponse(path, media_type=_KINDS[path.suffix], headers=headers)


for _url, _path in FILES.items():
    _add(_url, _path)
