"""A job's history and progress as the hub tells them: server-sent events, read line by line."""

from collections.abc import Iterable, Iterator

from pydantic import ValidationError

from sendense.client.exchange import unreachable
from sendense.requests import Event
from sendense.views import Job

MEDIA_TYPE = "text/event-stream"

_JOBS = ("job", "end")
"""Names of the messages that have the job in them; those without a name have an event."""


def read(lines: Iterable[str], url: str) -> Iterator[Event | Job]:
    """Events, and the job at each change; ends with the job as it ended. HubUnreachable when it ends before."""
    name, data = "", ""
    for line in lines:
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            data += value.strip()
        elif not line and data:
            found = _read(name, data, url)
            yield found
            if name == "end":
                return
            name, data = "", ""
    raise unreachable(url, "it ended what it told of the job")


def _read(name: str, data: str, url: str) -> Event | Job:
    kind = Job if name in _JOBS else Event
    try:
        return kind.model_validate_json(data)
    except ValidationError as exc:
        raise unreachable(url, "what it tells of the job is nothing that this version understands") from exc
