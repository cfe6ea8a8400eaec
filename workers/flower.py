"""
`python -m workers.flower`: Flower for operators, as `sendense.supervise.flower` keeps it up, or by itself.

Read-only, and behind a password for every page. All that it needs is in the settings and in files: on Flower's own
command line would stand the URL of Redis, and variables of its own could open what is closed here.
"""

import logging
import os
from urllib.parse import quote

from flower.app import Flower
from flower.options import default_options as options
from flower.urls import settings as web_settings
from flower.views.monitor import Healthcheck, Metrics
from tornado.ioloop import PeriodicCallback
from tornado.web import authenticated

from sendense.files import read_secret
from sendense.jobs.access import password_file, redis_url
from sendense.jobs.broker import make_app
from sendense.settings import Settings, host_and_port, load_settings
from sendense.supervise.flower import USER, ensure_password, read_password

MOST_TASKS = 10_000
"""Tasks that are kept: the batches of 1.2 TiB. The oldest go first."""

MOST_WORKERS = 500
"""Workers that are kept: four of each node, and some that are gone."""

GONE_SECONDS = 900
"""A worker that was silent for so long is shown no more: by then its operator knows that it is gone."""

INSPECT_MILLISECONDS = 2000.0
"""For workers to say what they do, and which queues they read: over a tunnel, too."""

INSPECT_EVERY_SECONDS = 30
"""Between two such questions: Flower itself asks at its start, so it would never know the queues of later nodes."""

DEAF_SECONDS = 60
"""Without one event it is deaf, as workers say every two seconds that they live. After a long absence of Redis it would
stay so: Flower 2.2 waits twice as long before each attempt to connect, without limit."""

COLUMNS = "name,args,state,retries,worker,started,runtime,exception,uuid,received"
"""Of the list of tasks; the last ones are outside of most windows."""


class _Metrics(Metrics):  # type: ignore[misc]  # Flower has no types
    """Flower itself gives its metrics to anybody."""

    @authenticated
    async def get(self) -> None:
        await super().get()


class _Healthcheck(Healthcheck):  # type: ignore[misc]
    """Flower itself answers this to anybody."""

    @authenticated
    async def get(self) -> None:
        await super().get()


class _Flower(Flower):  # type: ignore[misc]
    @property
    def broker_uri_with_password(self) -> str:
        """For the queues' lengths: Flower asks Redis for these by itself, and knows nothing of our password files."""
        settings = load_settings()
        url = redis_url(settings)
        file = password_file(url, settings)
        password = f":{quote(read_secret(file, 'redis_password_file'), safe='')}@" if file else ""
        kind, _, place = url.partition("://")
        return f"{'redis+socket' if kind == 'unix' else kind}://{password}{place}"


class _Hearing:
    """Ends the process when it hears nothing any more: whoever supervises it starts another."""

    def __init__(self, flower: Flower) -> None:
        self._flower = flower
        self._heard = -1

    def look(self) -> None:
        """Called every DEAF_SECONDS."""
        heard = self._flower.events.state.event_count
        if heard == self._heard:
            logging.getLogger(__name__).error("no event for %d s: ending", DEAF_SECONDS, extra={"action": "deaf"})
            os._exit(1)
        self._heard = heard


def make_flower(settings: Settings, redis_url: str) -> Flower:
    """Flower as these settings want it, listening."""
    options.address, options.port = host_and_port(settings.flower_listen)
    options.basic_auth = [f"{USER}:{read_password(settings)}"]
    options.read_only = True
    options.enable_events = False  # the workers send them anyway
    options.max_tasks, options.max_workers = MOST_TASKS, MOST_WORKERS
    options.purge_offline_workers = GONE_SECONDS
    options.inspect_timeout = INSPECT_MILLISECONDS
    options.auto_refresh = options.natural_time = True
    options.tasks_columns = COLUMNS
    if settings.tls_dir:
        certificate, key = settings.tls_dir / "server-cert.pem", settings.tls_dir / "server-key.pem"
        web_settings["ssl_options"] = {"certfile": str(certificate), "keyfile": str(key)}
    flower = _Flower(capp=make_app(redis_url), options=options, **web_settings)
    flower.add_handlers(".*", [("/metrics", _Metrics), ("/healthcheck", _Healthcheck)])
    flower.start_http_server()
    return flower


def main() -> None:
    """Run until a signal ends it: it keeps nothing."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # not every page that a browser may not see
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)  # at its start no worker is there that it could ask
    settings = load_settings()
    ensure_password(settings)
    flower = make_flower(settings, redis_url(settings))
    PeriodicCallback(_Hearing(flower).look, DEAF_SECONDS * 1000).start()
    PeriodicCallback(flower.update_workers, INSPECT_EVERY_SECONDS * 1000).start()
    flower.start()


if __name__ == "__main__":
    main()
