"""
The job page: its files as they lie in the folder `page`, for whoever asks; what they show, they ask for with a token.

They are read once, when the process starts, so no path of a request ever meets the file system.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

_POLICY = "; ".join(
    [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"),
    ]
)
"""Scripts and styles are files of the hub, nothing is text that becomes code, and no other page may frame this one."""

_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

_INDEX = "index.html"


@dataclass(frozen=True)
class _File:
    content: bytes
    type: str
    tag: str


def _read() -> dict[str, _File]:
    found = {}
    for path in (resources.files("sendense.api") / "page").iterdir():
        suffix = path.name.rpartition(".")[2]
        if suffix in _TYPES:
            content = path.read_bytes()
            found[path.name] = _File(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


_FILES = _read()

page = APIRouter(include_in_schema=False)


@page.get("/")
async def index() -> Response:
    """The page itself: never kept, so that a newer hub's is seen at once."""
    file = _FILES[_INDEX]
    return Response(file.content, headers={**_HEADERS, "Cache-Control": "no-store"}, media_type=file.type)


@page.get("/page/{name}")
async def asset(request: Request, name: str) -> Response:
    """A file of the page: kept, and asked for each time whether it is still the same."""
    file = _FILES.get(name)
    if not file or name == _INDEX:
        raise HTTPException(404)
    headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": file.tag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.type)
