"""The routes of notices."""

from fastapi import APIRouter
from starlette.responses import Response

from sendense.api.calls import ASKING, Call
from sendense.notices import NoticeSent, NoticesView

notices = APIRouter(prefix="/notices", tags=["notices"])


@notices.get("", response_model=NoticesView)
async def show(call: Call) -> Response:
    """Who is told of failures, and how far that has got."""
    return await call(lambda hub: hub.notices())


@notices.post("/test", response_model=list[NoticeSent])
async def test(call: Call) -> Response:
    """Send a notice to each receiver now; what came of it."""
    return await call.change(None, lambda hub: hub.test_notices(), ASKING)
