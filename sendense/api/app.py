"""The application: routes, errors and the gate put together, and the OpenAPI document that describes them."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import JSONResponse

from sendense import __version__
from sendense.api import problems
from sendense.api.calls import Calls, calls_of
from sendense.api.gate import GUARDED, Gate
from sendense.api.limits import Limits
from sendense.api.maps import maps
from sendense.api.metrics import metrics
from sendense.api.notices import notices
from sendense.api.page import page
from sendense.api.problems import RETRY_SECONDS, ProblemDetails
from sendense.api.routes import api, guarded
from sendense.api.schedules import schedules
from sendense.api.throttles import throttles
from sendense.views import Readiness

_ABOUT = """\
Backups, restores and migrations of VMs' disks, over a hub's nodes. Sizes are in bytes, times in UTC.

What is refused or failed is told as problem details (RFC 9457), with a hint of what to do.
"""

_OPEN = {"429", "500", "503"}
"""Problems of the routes that need no token."""

_WITH_BODY = {"400", "408", "413", "415"}
"""Problems of routes that take a body."""


def make_app(calls: Calls, limits: Limits) -> FastAPI:
    """The application over these calls."""
    app = FastAPI(
        title="Sendense",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.calls = calls
    problems.install(app)
    app.add_middleware(Gate, calls=calls, limits=limits)
    app.include_router(api)
    for router in (maps, notices, schedules, throttles):
        app.include_router(router, prefix=api.prefix, dependencies=guarded)
    app.include_router(metrics, dependencies=guarded)
    app.include_router(page)
    app.get("/healthz", tags=["hub"], response_model=dict[str, str])(healthz)
    app.get("/readyz", tags=["hub"], response_model=Readiness, responses={503: {"model": Readiness}})(readyz)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


async def healthz() -> dict[str, str]:
    """Whether the process lives."""
    return {"status": "ok"}


async def readyz(request: Request) -> JSONResponse:
    """Whether the hub can do its work: Redis, the exports, the repository and a coordinator are there."""
    found = await calls_of(request).readiness()
    headers = None if found.ready else {"Retry-After": str(RETRY_SECONDS)}
    return JSONResponse(found.model_dump(), 200 if found.ready else 503, headers)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the problems that each route can answer."""
    if app.openapi_schema:
        return app.openapi_schema
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    parts = found["components"]
    schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    parts["schemas"] |= schema.pop("$defs") | {ProblemDetails.__name__: schema}
    for unused in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(unused, None)
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}}}
    titles: dict[str, list[str]] = {}
    for kind in problems.KINDS:
        titles.setdefault(str(kind.status), []).append(kind.title)
    parts["responses"] = {
        status: {"description": "; or ".join(each), "content": content} for status, each in titles.items()
    }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            wanted = set(titles) if path.startswith(GUARDED) else _OPEN
            if "requestBody" not in operation:
                wanted = wanted - _WITH_BODY
            for status in sorted(wanted):
                if status == "422" or status not in operation["responses"]:
                    operation["responses"][status] = {"$ref": f"#/components/responses/{status}"}
                else:
                    operation["responses"][status]["content"] |= content
    app.openapi_schema = found
    return found
