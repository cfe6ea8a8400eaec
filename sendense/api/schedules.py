"""The routes of schedules."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from sendense.api.calls import ASKING, Call
from sendense.orders import ScheduleOrder
from sendense.schedules import NAME
from sendense.views import ScheduleView

schedules = APIRouter(prefix="/schedules", tags=["schedules"])

_Name = Annotated[str, Path(pattern=NAME)]


@schedules.get("", response_model=list[ScheduleView])
async def every(call: Call) -> Response:
    """The schedules, and how they stand."""
    return await call(lambda hub: hub.schedules())


@schedules.post("", response_model=ScheduleView)
async def add(call: Call, order: ScheduleOrder) -> Response:
    """Make a schedule; one that orders the same is left as it is."""
    return await call.change(order, lambda hub: hub.add_schedule(order), ASKING)


@schedules.get("/{name}", response_model=ScheduleView)
async def one(call: Call, name: _Name) -> Response:
    """A schedule, with each VM of its latest run."""
    return await call(lambda hub: hub.schedule(name))


@schedules.delete("/{name}", status_code=204)
async def remove(call: Call, name: _Name) -> Response:
    """Delete a schedule: nothing more begins, what runs goes on."""
    return await call.change(None, lambda hub: hub.remove_schedule(name))


@schedules.post("/{name}/pause", response_model=ScheduleView)
async def pause(call: Call, name: _Name) -> Response:
    """Have a schedule begin nothing more."""
    return await call.change(None, lambda hub: hub.pause_schedule(name))


@schedules.post("/{name}/resume", response_model=ScheduleView)
async def resume(call: Call, name: _Name) -> Response:
    """Have it begin again, with its next time."""
    return await call.change(None, lambda hub: hub.resume_schedule(name))


@schedules.post("/{name}/run", response_model=ScheduleView)
async def run(call: Call, name: _Name) -> Response:
    """Have it run now."""
    return await call.change(None, lambda hub: hub.run_schedule(name))
