"""Whether a hub can do its work."""

import math
from collections.abc import Iterator

from sendense.coordinator.context import Context, open_repository
from sendense.errors import SendenseError
from sendense.jobs import broker, presence
from sendense.jobs.access import RedisFull, RedisRefused, must_store
from sendense.jobs.queues import HUB_QUEUE
from sendense.nbd.connect import no_beat
from sendense.repository.finding import is_new
from sendense.supervise.beat import SILENCE_SECONDS
from sendense.units import show_seconds
from sendense.views import Check

CHECK_SECONDS = 3.0
"""For the exports daemon to say that it is there."""


def checks(context: Context) -> Iterator[Check]:
    """What a hub needs, each with what is wrong with it."""
    client = context.ledger.client
    try:
        must_store(client)
        yield Check(name="redis")
        workers = presence.processes(client, HUB_QUEUE)
        yield Check(name="coordinator", error="" if workers else "no worker reads the hub's queue")
        silence = presence.routine_silence(client)
        # It was never heard where no service runs the hub.
        stopped = SILENCE_SECONDS < silence < math.inf
        yield Check(name="routine", error=f"stands still for {show_seconds(silence)}" if stopped else "")
    except (RedisRefused, *broker.Unavailable) as exc:
        said = str(exc) if isinstance(exc, RedisRefused | RedisFull) else f"does not answer: {exc}"
        yield Check(name="redis", error=said)
        yield Check(name="coordinator", error="unknown without Redis")
        yield Check(name="routine", error="unknown without Redis")
    exports = context.exports(no_beat, CHECK_SECONDS)
    yield Check(name="exports", error="" if exports.answers() else "the exports daemon does not answer")
    yield Check(name="repository", error=_repository(context))


def _repository(context: Context) -> str:
    try:
        path = context.settings.repository
        if not (path and is_new(path)):
            open_repository(context.settings, create=False)
    except SendenseError as exc:
        return str(exc)
    return ""
