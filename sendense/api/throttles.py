"""The routes of throttles."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from sendense.api.calls import Call
from sendense.orders import ThrottleOrder
from sendense.views import ThrottleView

_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"

SiteInPath = Annotated[str, Path(max_length=63, pattern=r"^[^\x00-\x1f\x7f]+$")]
BandQuery = Annotated[
    str,
    Query(
        pattern=f"^({_TIME}-{_TIME}(@[1-7](,[1-7]){{0,6}})?)?$",
        description="HH:MM-HH:MM, with ISO weekdays where several have these times: 08:00-18:00@1,2. Else all.",
    ),
]

throttles = APIRouter(prefix="/throttles", tags=["throttles"])


@throttles.get("", response_model=list[ThrottleView])
async def show(call: Call) -> Response:
    """What may be read at each site, and what is read there now."""
    return await call(lambda hub: hub.throttles())


@throttles.post("/{site}", response_model=ThrottleView)
async def set_rate(call: Call, site: SiteInPath, order: ThrottleOrder) -> Response:
    """Limit what is read at a site, at a time of day or at all others; for jobs that run, too."""
    return await call.change(order, lambda hub: hub.set_throttle(site, order))


@throttles.delete("/{site}", response_model=ThrottleView)
async def remove(call: Call, site: SiteInPath, band: BandQuery = "") -> Response:
    """Lift the limit of a site, wholly or at a time of day."""
    return await call.change({"band": band}, lambda hub: hub.remove_throttle(site, band))
