"""Flower beside a hub: what operators find there, what nobody can do there, and that it comes back."""

import json
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from functools import partial

import flower.urls
import psutil
import pytest

from sendense.jobs.access import own_password_file
from sendense.jobs.queues import site_queue
from sendense.models import JobState
from sendense.settings import load_settings
from sendense.supervise import web
from sendense.supervise.flower import password_file
from sendense.units import MiB
from tests.bench.flower import Sender, feed
from tests.browser import Browser, open_browser
from tests.flower import FleetJob, Pages, Show, open_flower, open_show, wait_for
from tests.hub import open_hub
from tests.servers import certificates, short_folder
from workers.flower import MOST_TASKS

NAMES = ("oslo-1", "oslo-2", "bergen-1")
BATCHES = 24

MOST_MEMORY = 256 * MiB
"""Twice what Flower took after 100 000 tasks."""


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    """A Flower that only answers."""
    with open_hub() as hub, open_flower(hub.url, hub.folder) as pages:
        yield pages


def cells(browser: Browser, table: str, text: str) -> list[list[str]]:
    """The rows of a table that hold a text."""
    return [row for row in browser.rows(table) if any(text in cell for cell in row)]


def supervise_until(pages: Pages, what: str, condition: Callable[[], bool]) -> None:
    """Supervise Flower until a condition holds."""

    def look() -> bool:
        pages.service.supervise()
        return condition()

    wait_for(what, look)


def all_pages(show: Show) -> str:
    """Every page and every answer that Flower has about what happened so far."""
    tasks, workers = json.loads(show.pages.read("/api/tasks")), json.loads(show.pages.read("/api/workers?refresh=1"))
    paths = ["/", "/workers?json=1", "/tasks", "/broker", "/metrics", "/api/task/types", "/api/queues/length"]
    paths += [f"/worker/{worker}" for worker in workers] + [f"/task/{task}" for task in tasks]
    return json.dumps([tasks, workers]) + "".join(map(show.pages.read, paths))


def test_a_job_over_three_nodes_in_the_browser() -> None:
    """An operator sees the nodes, the batches by readable arguments, which of them failed and which was tried again."""
    with open_show() as show, open_browser() as browser:
        browser.open(show.pages.url)
        assert "Online workers" not in browser.source

        show.fleet.start(*NAMES)
        show.failing.touch()
        job = show.job("web01", BATCHES, seconds=0.1)
        wait_for("a read that fails", lambda: job.ledger.failures(job.spec.id))
        browser.open(show.pages.url_with_password)
        for name in NAMES:
            browser.wait_for(f"worker {name}", partial(cells, browser, "workers-table", f"{name}@"))
        browser.open(f"{show.pages.url}/tasks")
        browser.wait_for("a failed batch", lambda: cells(browser, "tasks-table", "RETRY"))
        failed = cells(browser, "tasks-table", "RETRY")[0]
        assert re.fullmatch(r"web01 · disk 2000 · batch \d+/24 · 256 KiB", failed[1])
        assert failed[7].startswith("ReadFailed: ")
        assert "Input/output error" in failed[7]
        assert job.ledger.state(job.spec.id) == "copying"

        show.failing.unlink()
        tick_until(job, "copied")
        browser.open(f"{show.pages.url}/tasks")
        browser.write("#tasks-table_filter input", "attempt")
        done = failed[1].replace(" · 256 KiB", " · attempt 2 · 256 KiB")
        browser.wait_for("its second attempt", lambda: cells(browser, "tasks-table", done))
        row = cells(browser, "tasks-table", done)[0]
        assert row[2:4] == ["SUCCESS", "1"], row
        assert_seen_by_all(show)

        job = show.job("db01", 1, full=True)
        wait_for("the end", lambda: job.ledger.state(job.spec.id) == "failed")
        browser.open(f"{show.pages.url}/tasks?state=FAILURE")
        browser.wait_for("the batch that failed", lambda: cells(browser, "tasks-table", "db01 · disk 2000 · batch 1/1"))
        assert "No space left" in " ".join(browser.rows("tasks-table")[0])
        assert_nothing_secret(show)


def tick_until(job: FleetJob, state: JobState) -> None:
    """Tick until the job is in a state."""
    wait_for(f"state {state}", lambda: job.tick() == state)


def assert_seen_by_all(show: Show) -> None:
    """Every node has done a batch, and no task of a batch is nameless."""
    tasks = json.loads(show.pages.read("/api/tasks")).values()
    copies = [task for task in tasks if task["name"] == "sendense.copy_extents"]
    assert {task["worker"].split("@")[0] for task in copies if task["state"] == "SUCCESS"} == set(NAMES)
    # What of a batch could not be read is a batch of its own, behind the others; and that has any size.
    readable = r"web01 · disk 2000 · batch \d+/\d+( · attempt \d)? · [\d.]+ KiB"
    assert [task["args"] for task in copies if not re.fullmatch(readable, task["args"])] == []


def assert_nothing_secret(show: Show) -> None:
    """Neither Flower's password nor that of Redis is on any page, nor in any answer."""
    text = all_pages(show)
    assert site_queue("local") in show.pages.read("/broker")
    assert "web01 · disk 2000 · batch" in text
    for secret in (show.pages.password, own_password_file(load_settings()).read_text().strip()):
        assert secret not in text


def test_nobody_enters_without_the_password(pages: Pages) -> None:
    """No page is open, neither the metrics nor the health check, with a wrong password either."""
    for path in ("/", "/workers?json=1", "/tasks", "/broker", "/api/tasks", "/api/workers", "/metrics", "/healthcheck"):
        assert pages.ask(path, password="")[0] == 401, path
        assert pages.ask(path, password="guess")[0] == 401, path
        assert pages.ask(path)[0] == 200, path


def test_nothing_can_be_changed(pages: Pages) -> None:
    """Whatever Flower can do to workers and tasks is refused, with the password."""
    changing = [
        pattern.replace("(.+)", "sendense.copy_extents")
        for pattern, handler in (rule for rule in flower.urls.handlers if isinstance(rule, tuple) and len(rule) == 2)
        if pattern.startswith("/api/") and "post" in vars(handler)
    ]
    assert {"/api/task/async-apply/sendense.copy_extents", "/api/worker/shutdown/sendense.copy_extents"} <= {*changing}
    assert len(changing) == 14
    assert {path: pages.ask(path, "POST")[0] for path in changing} == dict.fromkeys(changing, 403)


def test_the_password_is_a_secret() -> None:
    """It is made once, in a file for its owner, and is in no argument, variable or log."""
    with open_hub() as hub:
        with open_flower(hub.url, hub.folder) as pages:
            path = password_file(pages.service.settings)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            process = psutil.Process(pages.service.child.pid)
            assert pages.password not in json.dumps([process.cmdline(), process.environ()])
            pages.ask("/", password="x" + pages.password)
            assert pages.password not in pages.service.child.log.read_text()
            first = pages.password
        with open_flower(hub.url, hub.folder) as pages:
            assert pages.password == first


def test_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower that ended or stopped is started again, and its supervisor neither waits for it nor fails with it."""
    monkeypatch.setattr(web, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(web, "SILENT_SECONDS", 1.0)
    with open_hub() as hub, open_flower(hub.url, hub.folder) as pages:
        for kind in (signal.SIGKILL, signal.SIGSTOP):
            process = psutil.Process(pages.service.child.pid)
            process.send_signal(kind)
            supervise_until(pages, "the end of the old one", partial(lambda old: not old.is_running(), process))
            pages.service.wait()
            assert pages.ask("/healthcheck")[0] == 200
        assert len(pages.notes) == 2


def test_a_taken_port_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another program has costs Flower, which is tried again within its budget, and not its supervisor."""
    monkeypatch.setattr(web, "ASK_SECONDS", 0.0)
    with open_hub() as hub, open_flower(hub.url, hub.folder) as pages, socket.socket() as other:
        host, port = pages.service.settings.flower_listen.split(":")
        pages.service.end()
        other.bind((host, int(port)))
        other.listen()
        supervise_until(pages, "its reason", lambda: "flower_listen" in pages.service.refused)
        other.close()
        supervise_until(pages, "Flower", pages.service.is_ready)
        assert pages.ask("/healthcheck")[0] == 200


def test_tls() -> None:
    """With certificates Flower speaks TLS, and nothing else."""
    with open_hub() as hub, short_folder() as folder:
        certificates(folder)
        with open_flower(hub.url, hub.folder, tls_dir=folder) as pages, open_browser(trusting=True) as browser:
            assert pages.url.startswith("https://")
            browser.open(pages.url_with_password)
            browser.wait_for("the page", lambda: "Online workers" in browser.source)


def test_memory_is_bounded() -> None:
    """Flower forgets the oldest tasks: what it keeps, and what that takes, has a limit."""
    with open_hub() as hub, open_flower(hub.url, hub.folder) as pages:
        sender = Sender(hub.url)
        sender.await_hearing(pages)
        feed(pages, sender, MOST_TASKS + 500)
        assert len(json.loads(pages.read(f"/api/tasks?limit={2 * MOST_TASKS}"))) == MOST_TASKS
        assert psutil.Process(pages.service.child.pid).memory_info().rss < MOST_MEMORY
        sender.close()
