"""`sendense.Client` and `AsyncClient` against a live API, and against servers that are none."""

import asyncio
import http.server
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import sendense
from sendense.client import calls
from sendense.errors import (
    Cancelled,
    Conflict,
    HubUnreachable,
    InputError,
    NotAllowed,
    NotFound,
    SendenseError,
    StillRunning,
)
from sendense.orders import BackupOrder, DeleteOrder, PreviewOrder, PruneOrder
from sendense.service.hub import Hub
from sendense.views import Job
from tests.api import Api, open_api
from tests.backup import COMMAND_SECONDS, Backups, MiB, patiently
from tests.servers import free_port
from tests.site import LabSite, open_site

ROOT = Path(__file__).parents[2]

WAIT_SECONDS = 60.0
"""The longest that a job may take: ten times what it does take."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Machines with one small disk each."""
    with open_site(vms=7, disks=1, disk_size=16 * MiB, fill=4 * MiB) as site:
        yield site


@pytest.fixture(scope="module")
def token(api: Api) -> str:
    """An operator's."""
    return api.token(name="program")


@pytest.fixture
def client(api: Api, token: str) -> Iterator[sendense.Client]:
    """A client of the hub."""
    with sendense.Client(api.url, token) as client:
        yield client


@pytest.fixture(scope="module")
def point(backups: Backups) -> str:
    """A restore point of git01."""
    return backups.backup("git01").point


def test_it_is_a_hub(client: sendense.Client, site: LabSite, backups: Backups) -> None:
    """All that a hub does for commands, the client does: asked of a whole life of a VM's restore points."""
    hub: Hub = client
    assert [(each.name, each.reachable) for each in hub.sites()] == [("lab", True)]
    assert {vm.ref.name for vm in hub.vms()} == {vm.name for vm in site.client.vms()}
    info = hub.vm("web01")
    assert hub.vm(info.path, "lab").ref == info.ref
    assert hub.power_on("web01").power == "on"
    assert hub.preview(PreviewOrder(vm="web01")).mode == "full"
    first = client.backup("web01").wait(timeout=WAIT_SECONDS)
    second = client.backup("web01", verify=True, quiesce=False).wait(timeout=WAIT_SECONDS)
    assert [disk.verified for disk in second.disks] == [True]
    assert [vm.vm for vm in hub.points("web01")] == [info.ref]
    assert hub.point("web01@latest").point.id == second.point
    assert hub.point(first.point).children == [second.point]
    assert [level.point for level in hub.chain(second.point)[0].levels] == [second.point, first.point]
    assert client.verify(first.point, own=True).wait(timeout=WAIT_SECONDS).kind == "verify"
    key, target = second.disks[0].key, backups.folder / "restored.qcow2"
    client.restore(second.point, {key: str(target)}).wait(timeout=WAIT_SECONDS)
    assert target.exists()
    page = hub.jobs(vm="web01", limit=2)
    assert [job.kind for job in page.jobs] == ["restore", "verify"]
    assert [job.kind for job in hub.jobs(before=page.following, vm="web01").jobs][:2] == ["backup", "backup"]
    served = hub.serve(second.point)
    assert [each.name for each in hub.exports()] == [each.export for each in served]
    hub.unserve(served[0].export)
    assert hub.exports() == []
    [pruned] = hub.prune(PruneOrder(vm="web01", last=1), "prune-1")
    assert pruned.job
    client.take_up(pruned.job.id).wait(timeout=WAIT_SECONDS)
    deletion = hub.delete(DeleteOrder(points=[second.point]), "delete-1")
    assert deletion.job
    assert client.take_up(deletion.job.id[:6]).wait(timeout=WAIT_SECONDS).state == "succeeded"
    assert [vm.points for vm in hub.points("web01")] == [[]]
    assert hub.nodes() == []
    assert not any(each.failed for each in hub.clean())
    assert hub.repository().path == str(backups.root)


def test_awaited(api: Api, token: str) -> None:
    """The same, awaited: two jobs at once, each with its progress."""
    seen: dict[str, list[Job]] = {"db01": [], "app01": []}

    async def back_up(client: sendense.AsyncClient, vm: str) -> Job:
        handle = await client.backup(vm)
        assert (await handle.refresh()).id == handle.id
        ended = await handle.wait(seen[vm].append, timeout=WAIT_SECONDS)
        assert [event.text for event in await handle.events()][-1] == "succeeded"
        return ended

    async def both() -> list[Job]:
        async with sendense.AsyncClient(api.url, token) as client:
            with pytest.raises(NotFound):
                await client.point("nothing")
            return list(await asyncio.gather(*(back_up(client, vm) for vm in seen)))

    ended = asyncio.run(both())
    assert [job.name for job in ended] == ["backup of db01", "backup of app01"]
    assert all(looks[-1].has_ended for looks in seen.values())


def test_a_job_that_is_stopped(client: sendense.Client, site: LabSite) -> None:
    """A job rests, goes on and is cancelled by its handle; whoever waits for it no longer than so long is told so."""
    site.client.set("mail01", read_rate=MiB // 2)
    try:
        handle = client.backup("mail01")
        with pytest.raises(StillRunning, match=handle.id):
            handle.wait(timeout=0)
        with pytest.raises(Conflict, match=handle.id):
            client.backup("mail01")
        assert handle.pause().paused
        assert patiently(lambda: handle.refresh().waiting == "paused by a user", WAIT_SECONDS)
        assert not handle.resume().paused
        handle.cancel()
        with pytest.raises(Cancelled):
            handle.wait(timeout=WAIT_SECONDS)
    finally:
        site.client.set("mail01", read_rate=0)
    assert handle.job.state == "cancelled"
    with pytest.raises(Conflict, match="cancelled already"):
        handle.cancel()
    handle.resume()
    assert handle.wait(timeout=WAIT_SECONDS).state == "succeeded"


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda client: client.backup("nobody"), NotFound, "nobody"),
        (lambda client: client.backup(""), InputError, "vm"),
        (lambda client: client.restore("x", {}), InputError, "targets"),
        (lambda client: client.restore("x", {2000: "image.qcow2"}), NotFound, "no restore point 'x'"),
        (lambda client: client.job(""), NotFound, "no name"),
        (lambda client: client.job("../../healthz"), NotFound, "nothing here"),
        (lambda client: client.jobs(limit=0), InputError, "limit"),
        (lambda client: client.serve("git01@latest", 7), InputError, "has no disk 7"),
        (lambda client: client.unserve("job-x"), NotFound, "job-x"),
        (lambda client: client.drain("n1"), NotFound, "n1"),
    ],
)
def test_what_is_wrong(
    client: sendense.Client, point: str, wrong: object, error: type[SendenseError], said: str
) -> None:
    """What a hub refuses is raised as the error that it is, with what to do."""
    assert callable(wrong)
    with pytest.raises(error, match=said) as caught:
        wrong(client)
    assert caught.value.hint


def test_one_key_one_job(api: Api, token: str, client: sendense.Client) -> None:
    """An answer that is lost is asked for again, and no second job comes of it; nor from two programs with one key."""
    before = len(client.jobs().jobs)
    with _proxy(api.url, cut=2) as port, sendense.Client(f"http://127.0.0.1:{port}", token) as lossy:
        job = lossy.backup("files01").wait(timeout=WAIT_SECONDS)
    assert len(client.jobs().jobs) == before + 1
    order, key = BackupOrder(vm="files01"), "nightly"
    assert client.submit(order, key).id == client.submit(order, key).id != job.id
    with pytest.raises(Conflict, match="another order"):
        client.submit(BackupOrder(vm="files01", mode="full"), key)
    client.take_up(client.submit(order, key).id).wait(timeout=WAIT_SECONDS)


def test_a_hub_that_is_started_again(api: Api, token: str, site: LabSite) -> None:
    """Whoever waits for a job does not notice that the API was away, other than by its silence."""
    site.client.set("web01", read_rate=MiB)
    looks: list[Job] = []
    try:
        with sendense.Client(api.url, token) as client:
            handle = client.backup("web01", mode="full")
            thread = threading.Thread(target=lambda: handle.wait(looks.append, timeout=WAIT_SECONDS))
            thread.start()
            assert patiently(lambda: bool(looks), WAIT_SECONDS)
            api.stop()
            time.sleep(1.5)
            api.start()
            site.client.set("web01", read_rate=0)
            thread.join(WAIT_SECONDS)
            assert handle.job.state == "succeeded"
    finally:
        site.client.set("web01", read_rate=0)


def test_tokens(api: Api) -> None:
    """A wrong token, and one that may only look, are refused with what to do; one that cannot be is not sent."""
    with sendense.Client(api.url, "sendense_nobody") as stranger, pytest.raises(NotAllowed) as caught:
        stranger.jobs()
    assert caught.value.hint
    with sendense.Client(api.url, api.token("reader", "looker")) as reader:
        assert reader.sites()
        with pytest.raises(NotAllowed):
            reader.backup("web01")
    for wrong in ("", "two\nlines", "ümlaut"):
        with pytest.raises(InputError, match="token"):
            sendense.Client(api.url, wrong)
    with pytest.raises(InputError, match="without TLS"):
        sendense.Client("http://hub.example:7780", "x")
    for wrong in ("hub:7780", "http://127.0.0.1:port", "https://[::1", "https://hub/api", ""):
        with pytest.raises(InputError, match="is no http"):
            sendense.Client(wrong, "x")


def test_hubs_that_are_none() -> None:
    """Nobody, somebody else, and somebody silent: each is told within seconds, with the URL and what was the matter."""
    url = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with sendense.Client(url, "x", patience=1) as client, pytest.raises(HubUnreachable, match="refused") as caught:
        client.jobs()
    assert (url in str(caught.value), bool(caught.value.hint)) == (True, True)
    with _website() as port, sendense.Client(f"http://127.0.0.1:{port}", "x", patience=0) as client:
        with pytest.raises(HubUnreachable, match="not as a hub does"):
            client.jobs()
        with pytest.raises(HubUnreachable, match="none that this version understands"):
            client.nodes()
    assert time.monotonic() - began < 20
    assert calls.jobs().seconds <= calls.QUICK_SECONDS


def test_tls(backups: Backups, tls_folder: Path, tmp_path: Path) -> None:
    """A hub's certificate is verified, by the authority that is named."""
    folder = tmp_path / "tls"
    folder.mkdir()
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        (folder / name).write_bytes((tls_folder / name).read_bytes())
    (folder / "server-key.pem").chmod(0o600)
    with open_api(backups, folder) as api:
        url, token = f"https://localhost:{api.port}", api.token(name="tls")
        with sendense.Client(url, token, ca_file=folder / "ca-cert.pem") as client:
            assert client.sites()
        with sendense.Client(url, token) as client, pytest.raises(HubUnreachable, match="certificate") as caught:
            client.sites()
        assert "ca-cert.pem" in caught.value.hint
    with pytest.raises(InputError, match="missing"):
        sendense.Client(url, token, ca_file=folder / "missing.pem")


def test_the_example(api: Api, token: str, tmp_path: Path) -> None:
    """examples/submit.py backs a VM up, and docs/programs.md has the very same program."""
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(token + "\n")
    program = ROOT / "examples" / "submit.py"
    environment = {"SENDENSE_HUB": api.url, "SENDENSE_TOKEN_FILE": str(path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program, "db01"], env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^restore point [0-9a-f-]+T?\S*: (full|incremental), ", done.stdout, re.MULTILINE), done.stdout
    assert "def main" in (ROOT / "docs" / "programs.md").read_text()
    listing = program.read_text().partition('"""\n\n')[2]
    assert listing in (ROOT / "docs" / "programs.md").read_text()
    failed = subprocess.run(
        [sys.executable, program, "nobody"], env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert (failed.returncode, "nobody" in failed.stderr, "  " in failed.stderr) == (1, True, True)


@contextmanager
def _serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of an HTTP server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _proxy(url: str, cut: int) -> Iterator[int]:
    """Passes requests on to a hub, and swallows the first `cut` of its answers."""
    left = [cut]

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on()

        def do_POST(self) -> None:
            self._pass_on()

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: text for name, text in self.headers.items() if name != "Host"}
            answer = httpx.request(self.command, f"{url}{self.path}", content=body, headers=headers, timeout=60)
            if left[0]:
                left[0] -= 1
                return
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _serving(Proxy) as port:
        yield port


@contextmanager
def _website() -> Iterator[int]:
    """Something that speaks HTTP, and is no hub: an error page at most addresses, a page of its own at one."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith("nodes") else 502)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _serving(Page) as port:
        yield port
