"""The routes that the job page needs beside those of programs: maps of disks, and who is asking."""

from typing import cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from sendense import __version__
from sendense.api.calls import Call
from sendense.api.parameters import Cursor, JobInPath, PartQuery, PlaceQuery
from sendense.maps import CopyMap
from sendense.service.tokens import Token
from sendense.views import WhoAmI

maps = APIRouter()


@maps.get("/jobs/{job}/map", tags=["jobs"], response_model=CopyMap)
async def disk_map(
    call: Call, job: JobInPath, disk: PlaceQuery = 0, part: PartQuery = "copying", after: Cursor = ""
) -> Response:
    """Where each batch of a disk stands, and who stored it; with `after` only what changed."""
    return await call(lambda hub: hub.disk_map(job, disk, part, after))


@maps.get("/whoami", tags=["hub"], response_model=WhoAmI)
async def whoami(request: Request, call: Call) -> Response:
    """Whose token this is, and what it may do."""
    token = cast(Token, request.scope["state"]["token"])
    return await call(
        lambda hub: WhoAmI(name=token.name, role=token.role, version=__version__, flower=hub.flower_url())
    )
