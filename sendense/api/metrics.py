"""The route that Prometheus scrapes. It needs a token, as all that tells of VMs does; a reader's is enough."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from sendense.api.calls import calls_of

metrics = APIRouter()


@metrics.get("/metrics", tags=["hub"], response_class=PlainTextResponse)
async def scrape(request: Request) -> Response:
    """The hub's metrics, in Prometheus' text format."""
    return Response(await calls_of(request).metrics_text(), media_type=CONTENT_TYPE_LATEST)
