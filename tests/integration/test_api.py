"""The API of a hub: a real server process beside a real hub, asked over HTTP."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from sendense.api.limits import BODY_BYTES
from sendense.api.server import HEAD_SECONDS
from sendense.api.streams import HEARTBEAT_SECONDS, STREAMS
from tests.api import ANSWER_SECONDS, Api, open_api, problem
from tests.backup import WAIT_SECONDS, Backups, patiently
from tests.hub import open_hub
from tests.servers import free_port
from tests.site import LabSite, MiB, open_site

STREAM = {"Accept": "text/event-stream"}
JSON = {"Content-Type": "application/json"}
VM = "web01"


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Small VMs: what matters here is what the hub says of them."""
    with open_site(vms=1, disks=1, disk_size=16 * MiB) as site:
        yield site


@pytest.fixture(scope="module")
def api(backups: Backups) -> Iterator[Api]:
    """The API of the module's hub, with one restore point."""
    backups.backup(VM)
    with open_api(backups) as api:
        yield api


@pytest.fixture(scope="module")
def operator(api: Api) -> httpx.Client:
    """Who may do everything."""
    return api.client(api.token("operator", "ops"))


@pytest.fixture(scope="module")
def reader(api: Api) -> httpx.Client:
    """Who may look."""
    return api.client(api.token("reader", "eyes"))


def _ended(client: httpx.Client, job: str) -> dict[str, Any]:
    """The job, once it has ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found: dict[str, Any] = client.get(f"/api/v1/jobs/{job}").raise_for_status().json()
        if found["ended"]:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def _audit(backups: Backups) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (backups.state / "audit.log").read_text().splitlines()]


@pytest.fixture
def resting(operator: httpx.Client) -> Iterator[str]:
    """A job that is paused, and so does not end; it is cancelled afterwards."""
    while True:  # a small one may have ended before it was told
        job: str = operator.post("/api/v1/backups", json={"vm": VM}).raise_for_status().json()["id"]
        if operator.post(f"/api/v1/jobs/{job}/pause").status_code == 200:
            break
        _ended(operator, job)
    yield job
    operator.post(f"/api/v1/jobs/{job}/cancel")
    _ended(operator, job)


def test_what_a_hub_has(reader: httpx.Client, backups: Backups) -> None:
    """A reader sees sites, VMs by name and by path, points, backups, jobs, nodes, exports and the repository."""
    assert reader.get("/api/v1/sites").json() == [{"name": "lab", "nodes": [], "reachable": True}]
    vms = {vm["ref"]["name"]: vm for vm in reader.get("/api/v1/vms", params={"site": "lab"}).json()}
    path = vms[VM]["path"].replace("/", "%2F")
    assert reader.get(f"/api/v1/vms/{path}").json() == reader.get(f"/api/v1/vms/{VM}").json() == vms[VM]
    point = backups.points(VM)[-1]
    for name in ("points", "backups"):
        (listed,) = reader.get(f"/api/v1/{name}", params={"vm": VM}).json()
        assert point.id in [each["id"] for each in listed["points"]]
        assert reader.get(f"/api/v1/{name}/{VM}@latest").json()["point"]["id"] == point.id
        assert reader.get(f"/api/v1/{name}/{point.id}/chain").json()[0]["levels"][0]["point"] == point.id
    (job,) = [each for each in reader.get("/api/v1/jobs").json()["jobs"] if each["point"] == point.id]
    assert job["disks"][0]["progress"]["by_worker"]
    assert reader.get(f"/api/v1/jobs/{job['id'][:8]}").json() == job
    assert reader.get("/api/v1/repository").json()["points"] >= 1
    assert reader.get("/api/v1/exports").json() == reader.get("/api/v1/nodes").json() == []


def test_pages_of_jobs(operator: httpx.Client) -> None:
    """A page says where the next one begins, and filters hold over pages."""
    point = f"{VM}@latest"
    for _ in range(2):
        job = operator.post("/api/v1/verifications", json={"point": point}).json()["id"]
        assert _ended(operator, job)["state"] == "succeeded"
    query: dict[str, str | int] = {"kind": "verify", "state": "succeeded", "vm": VM, "limit": 1}
    first = operator.get("/api/v1/jobs", params=query).json()
    second = operator.get("/api/v1/jobs", params={**query, "before": first["following"]}).json()
    assert first["jobs"][0]["id"] == first["following"] == job
    assert second["jobs"][0]["id"] != job
    assert second["following"] == ""
    problem(operator.get("/api/v1/jobs", params={"before": "nothing"}), 404)


def test_a_job_from_order_to_end(operator: httpx.Client, backups: Backups) -> None:
    """An order is answered with the job and its address; the job can be followed to its end, and its point deleted."""
    answer = operator.post("/api/v1/backups", json={"vm": VM, "mode": "full", "quiesce": False})
    assert answer.status_code == 202
    job = operator.get(answer.headers["Location"]).json()
    assert job["id"] == answer.json()["id"]
    ended = _ended(operator, job["id"])
    assert (ended["state"], ended["kind"], ended["disks"][0]["mode"]) == ("succeeded", "backup", "full")
    problem(operator.post(f"/api/v1/jobs/{job['id']}/cancel"), 409)
    problem(operator.post(f"/api/v1/jobs/{job['id']}/resume"), 409)
    gone = operator.delete(f"/api/v1/backups/{ended['point']}")
    assert gone.status_code == 202
    assert gone.headers["Location"] == f"/api/v1/jobs/{gone.json()['job']['id']}"
    assert _ended(operator, gone.json()["job"]["id"])["state"] == "succeeded"
    problem(operator.get(f"/api/v1/points/{ended['point']}"), 404)
    assert ended["point"] not in [point.id for point in backups.points(VM)]


def test_a_disk_is_served_and_unserved(operator: httpx.Client) -> None:
    """What serve began is among the exports until it is deleted."""
    (disk,) = operator.post(f"/api/v1/points/{VM}@latest/serve").json()
    (export,) = operator.get("/api/v1/exports").json()
    assert export["name"] == disk["export"]
    assert not export["writable"]
    assert operator.delete(f"/api/v1/exports/{disk['export']}").status_code == 204
    problem(operator.delete(f"/api/v1/exports/{disk['export']}"), 404)
    assert operator.get("/api/v1/exports").json() == []


def test_other_orders(operator: httpx.Client, backups: Backups) -> None:
    """Previews, restores, dry prunes and cleaning are answered as by their commands."""
    assert operator.post("/api/v1/backups/preview", json={"vm": VM}).json()["parent"] == backups.points(VM)[-1].id
    target = backups.folder / "restored.qcow2"
    order = {"point": f"{VM}@latest", "targets": {"2000": str(target)}}
    job = operator.post("/api/v1/restores", json=order).json()["id"]
    assert _ended(operator, job)["state"] == "succeeded"
    assert target.exists()
    problem(operator.post("/api/v1/restores", json=order), 409)
    (pruning,) = operator.post("/api/v1/points/prune", json={"vm": VM, "last": 1, "dry_run": True}).json()
    assert pruning["job"] is None
    assert operator.post("/api/v1/clean").json() == []
    assert operator.post(f"/api/v1/vms/{VM}/start").json()["power"] == "on"


def test_the_same_request_twice_makes_one_job(operator: httpx.Client) -> None:
    """An Idempotency-Key makes one job of a request that is sent again, also at once, and refuses another under it."""
    keyed = {"Idempotency-Key": "nightly-2026-11-23"}
    order = {"point": f"{VM}@latest"}

    def send(_: int) -> httpx.Response:
        return operator.post("/api/v1/verifications", json=order, headers=keyed)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.headers["Location"] for answer in answers}) == 1
    job = answers[0].json()["id"]
    _ended(operator, job)
    assert send(0).json()["id"] == job
    refused = problem(operator.post("/api/v1/verifications", json={**order, "own": True}, headers=keyed), 409)
    assert refused["type"] == "urn:sendense:conflict"
    verified = operator.get("/api/v1/jobs", params={"kind": "verify"}).json()["jobs"]
    assert [each["id"] for each in verified].count(job) == 1


def test_keys_of_two_tokens_are_two_keys(api: Api, operator: httpx.Client) -> None:
    """Nobody gets another's job for having chosen the same key."""
    other = api.client(api.token())
    keyed = {"Idempotency-Key": "1"}
    jobs = []
    for client in (operator, other):
        job = client.post("/api/v1/verifications", json={"point": f"{VM}@latest"}, headers=keyed).json()["id"]
        jobs.append(_ended(client, job)["id"])
    assert len(set(jobs)) == 2


def test_tokens(api: Api, reader: httpx.Client, operator: httpx.Client, backups: Backups) -> None:
    """No or a wrong token: 401. A reader's that would change something: 403. A revoked one: 401 from then on."""
    for client in (api.client(), api.client("sendense_wrong"), api.client(Authorization="Basic b3BzOm9wcw==")):
        answer = client.get("/api/v1/jobs")
        problem(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    for request in (reader.post("/api/v1/clean"), reader.delete("/api/v1/points/x"), reader.post("/api/v1/nowhere")):
        assert problem(request, 403)["type"] == "urn:sendense:forbidden"
    for host in ("x/y?", "x/y#", "x:1/healthz?", "[::1]/y?"):  # of which another path could be read
        assert api.client(Host=host).get("/api/v1/jobs").status_code in (400, 401)
    token = api.token("reader", "guest")
    guest = api.client(token)
    assert guest.get("/api/v1/jobs").status_code == 200
    assert backups.run("token", "revoke", "guest").status == 0
    problem(guest.get("/api/v1/jobs"), 401)
    assert operator.get("/api/v1/jobs").status_code == 200


def test_problems_have_the_hints_of_the_command(operator: httpx.Client, backups: Backups) -> None:
    """What is refused is told over HTTP as on a terminal: the same words, the same hint."""
    for path, command in (
        ("/api/v1/points/nothing", ("points", "show", "nothing")),
        ("/api/v1/vms/nothing", ("vms", "show", "nothing")),
        ("/api/v1/jobs/nothing", ("jobs", "show", "nothing")),
    ):
        found = problem(operator.get(path), 404)
        assert backups.run(*command).error == [f"sendense: {found['detail']}", f"  {found['hint']}"]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "word"),
    [
        ("GET", "/nowhere", {}, 404, "no-such-route"),
        ("GET", "/api/v1/jobs/", {}, 404, "no-such-route"),
        ("PATCH", "/api/v1/backups", {}, 405, "no-such-method"),
        ("POST", "/api/v1/backups", {"content": b"{", "headers": JSON}, 400, "bad-request"),
        ("POST", "/api/v1/backups", {"content": b"[" * 9000, "headers": JSON}, 400, "bad-request"),
        ("POST", "/api/v1/backups", {"content": b"vm=web01"}, 415, "no-json"),
        ("POST", "/api/v1/backups", {"data": {"vm": VM}}, 415, "no-json"),
        ("POST", "/api/v1/backups", {"json": {"vm": VM, "disks": ["2000"]}}, 422, "invalid"),
        ("POST", "/api/v1/backups", {"content": b'{"\\ud800": 1}', "headers": JSON}, 422, "invalid"),
        ("POST", "/api/v1/backups", {}, 422, "invalid"),
        ("POST", "/api/v1/restores", {"json": {"point": "x", "targets": {"2000.0": "/x.raw"}}}, 422, "invalid"),
        ("GET", "/api/v1/jobs?sate=failed", {}, 422, "invalid"),
        ("GET", "/api/v1/jobs?limit=%205", {}, 422, "invalid"),
        ("DELETE", "/api/v1/points/x?merge=yes", {}, 422, "invalid"),
        ("GET", "/api/v1/jobs/x/events?after=yesterday", {}, 422, "invalid"),
        ("GET", "/api/v1/jobs/x/events", {"headers": STREAM}, 404, "not-found"),
        ("GET", "/api/v1/vms?site=oslo", {}, 404, "not-found"),
    ],
)  # fmt: skip
def test_refusals(
    operator: httpx.Client, method: str, path: str, options: dict[str, Any], status: int, word: str
) -> None:
    """Whatever is wrong with a request is told as a problem, with a word for programs and a hint for people."""
    answer = operator.request(method, path, **options)
    found = problem(answer, status)
    assert found["type"] == f"urn:sendense:{word}"
    assert found["hint"]
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", found["instance"])
    if status == 405:
        assert answer.headers["Allow"] == "GET, POST"
    if status == 422:
        assert found["fields"]


def test_bodies_are_bounded(operator: httpx.Client) -> None:
    """A body that is too large is refused, whether it says so first or comes in pieces; one that fits is read."""
    pieces = (b" " * 65536 for _ in range(BODY_BYTES // 65536 + 2))
    for content in (b" " * (BODY_BYTES + 1), pieces):
        with suppress(httpx.WriteError):  # the hub does not wait for the rest of it
            problem(operator.post("/api/v1/backups", content=content, headers=JSON), 413)
    fits = json.dumps({"vm": "nothing"}).encode().ljust(BODY_BYTES)
    problem(operator.post("/api/v1/backups", content=fits, headers=JSON), 404)


def test_a_silent_client_is_cut_off(api: Api) -> None:
    """A connection on which no whole request comes is closed, and does not last."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", api.port), timeout=ANSWER_SECONDS) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert client.recv(1) == b""
    assert time.monotonic() - began >= HEAD_SECONDS / 2


def test_a_site_that_is_away(operator: httpx.Client, site: LabSite, backups: Backups) -> None:
    """A vCenter that does not answer is a 502 with the command's hint; the rest of the hub goes on."""
    site.stop()
    try:
        found = problem(operator.get("/api/v1/vms"), 502)
        assert found["type"] == "urn:sendense:site-failed"
        assert backups.run("vms").error[1] == f"  {found['hint']}"
        assert operator.get("/api/v1/points").status_code == 200
    finally:
        site.start()
    assert operator.get("/api/v1/vms").status_code == 200


def _messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The messages of an event stream, comments as such."""
    message: dict[str, str] = {}
    for line in lines:
        if not line:
            yield message
            message = {}
        else:
            name, _, value = line.partition(":")
            message[name or "comment"] = value.removeprefix(" ")


def test_a_stream_goes_on_where_it_broke(operator: httpx.Client) -> None:
    """Cut after each message and asked for again with the last id, a stream tells everything once, and then the end."""
    job = operator.post("/api/v1/verifications", json={"point": f"{VM}@latest"}).json()["id"]
    told: list[dict[str, Any]] = []
    ended = None
    while not ended:
        last = {"Last-Event-ID": told[-1]["id"]} if told else {}
        with operator.stream("GET", f"/api/v1/jobs/{job}/events", headers={**STREAM, **last}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for message in _messages(answer.iter_lines()):
                if message.get("event") == "end":
                    ended = json.loads(message["data"])
                elif "id" in message:
                    told.append(json.loads(message["data"]))
                    assert told[-1]["id"] == message["id"]
                    break
    assert told == operator.get(f"/api/v1/jobs/{job}/events").json()
    assert ended == operator.get(f"/api/v1/jobs/{job}").json()
    after = told[1]["id"]
    assert operator.get(f"/api/v1/jobs/{job}/events", params={"after": after}).json() == told[2:]


def test_a_stream_of_a_resting_job(api: Api, resting: str, backups: Backups) -> None:
    """A stream that has nothing to tell says that it lives, and ends without an end when its token is revoked."""
    with api.client(api.token("reader", "viewer")).stream(
        "GET", f"/api/v1/jobs/{resting}/events", headers=STREAM
    ) as answer:
        messages, began = _messages(answer.iter_lines()), time.monotonic()
        assert any("comment" in message for message in messages)
        assert time.monotonic() - began < HEARTBEAT_SECONDS + WAIT_SECONDS
        backups.run("token", "revoke", "viewer")
        assert not any("event" in message for message in messages)


def test_streams_are_bounded(api: Api, operator: httpx.Client, resting: str) -> None:
    """So many streams are open at once, the next is told to come back; requests are answered meanwhile."""
    path = f"/api/v1/jobs/{resting}/events"
    with httpx.Client(base_url=api.url, headers=operator.headers, timeout=ANSWER_SECONDS) as crowd:
        streams = [crowd.send(crowd.build_request("GET", path, headers=STREAM), stream=True) for _ in range(STREAMS)]
        assert {each.status_code for each in streams} == {200}
        refused = operator.get(path, headers=STREAM)
        problem(refused, 503)
        assert refused.headers["Retry-After"]
        assert operator.get("/api/v1/jobs").status_code == 200
        for each in streams:
            each.close()

    def opens() -> bool:
        with operator.stream("GET", path, headers=STREAM) as answer:
            return answer.status_code == 200

    assert patiently(opens, WAIT_SECONDS)


def test_readiness(api: Api, operator: httpx.Client, backups: Backups) -> None:
    """A Redis that stops makes the hub unready, and requests a 503 that says when to ask again, until it is back."""
    anybody = api.client()
    assert anybody.get("/healthz").json() == {"status": "ok"}
    assert patiently(lambda: anybody.get("/readyz").status_code == 200, WAIT_SECONDS)
    assert {check["name"] for check in anybody.get("/readyz").json()["checks"]} >= {"redis", "exports", "repository"}
    (redis,) = backups.family("redis-server")
    redis.send_signal(signal.SIGSTOP)
    try:
        answer = anybody.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        wrong = [check["name"] for check in answer.json()["checks"] if check["error"]]
        assert wrong == ["redis", "coordinator", "routine"]
        if redis.is_running() and redis.status() == "stopped":  # the hub starts a silent one again
            refused = operator.get("/api/v1/jobs")
            if refused.status_code != 200:
                assert problem(refused, 503)["type"] == "urn:sendense:unavailable"
                assert refused.headers["Retry-After"]
        assert anybody.get("/healthz").status_code == 200
    finally:
        if redis.is_running():
            redis.send_signal(signal.SIGCONT)
    assert patiently(lambda: anybody.get("/readyz").status_code == 200, WAIT_SECONDS)
    assert operator.get("/api/v1/jobs").status_code == 200


def test_a_redis_that_refuses_is_no_fault_of_the_request(backups: Backups, tmp_path: Path) -> None:
    """With a wrong password the hub lacks a part: 503, and which password, to whoever asks and in its readiness."""
    password = tmp_path / "wrong"
    password.touch(0o600)
    password.write_text("wrong\n")
    with open_hub() as redis, open_api(backups, redis=redis.url, redis_password_file=password) as api:
        redis.client.config_set("requirepass", "right")
        client = api.client(api.token("reader", "refused"))
        found = problem(client.get("/api/v1/jobs"), 503)
        assert (found["type"], str(password) in found["detail"]) == ("urn:sendense:unavailable", True)
        ready = client.get("/readyz")
    assert ready.status_code == 503
    assert str(password) in next(check["error"] for check in ready.json()["checks"] if check["name"] == "redis")


def test_every_change_is_in_the_audit_log(
    api: Api, operator: httpx.Client, reader: httpx.Client, backups: Backups
) -> None:
    """Who changed what, before it is done and how it ended; and who was refused what. Passwords in URIs are masked."""
    before = len(_audit(backups))
    job = operator.post("/api/v1/verifications", json={"point": f"{VM}@latest"}).json()["id"]
    _ended(operator, job)
    order = {"point": "nothing", "targets": {"2000": "nbd://user:hush@127.0.0.1/x"}}
    problem(operator.post("/api/v1/restores", json=order), 404)
    problem(operator.post("/api/v1/restores", json={}), 422)
    problem(reader.delete("/api/v1/points/a%0Ab"), 403)
    problem(api.client().post("/api/v1/clean"), 401)
    reader.get("/api/v1/jobs")
    lines = _audit(backups)[before:]
    found = [(line.get("who"), line["action"], line["outcome"]) for line in lines]
    assert found == [
        ("ops", "POST /api/v1/verifications", "begun"),
        ("ops", "POST /api/v1/verifications", "done"),
        ("ops", "POST /api/v1/restores", "begun"),
        ("ops", "POST /api/v1/restores", "refused"),
        ("ops", "POST /api/v1/restores", "refused"),
        ("eyes", "DELETE /api/v1/points/a%0Ab", "refused"),
        (None, "POST /api/v1/clean", "refused"),
    ]
    assert lines[0]["id"] == lines[1]["id"]
    assert lines[1]["jobs"] == [job]
    assert (lines[1]["role"], lines[1]["address"]) == ("operator", "127.0.0.1")
    assert lines[2]["order"]["targets"] == {"2000": "nbd://user:…@127.0.0.1/x"}
    assert all(line["error"] for line in lines[3:])
    assert stat.S_IMODE((backups.state / "audit.log").stat().st_mode) == 0o600


def test_no_token_is_written_down(api: Api, backups: Backups) -> None:
    """A token stands in no file of the hub, in no log and in no process's environment or arguments."""
    token = api.token().encode()
    secret = token.decode()
    client = api.client(secret)
    client.get("/api/v1/jobs")
    client.post("/api/v1/backups", json={"vm": "nothing"})
    for path in [api.log, *(path for path in backups.state.rglob("*") if path.is_file())]:
        assert token not in path.read_bytes(), path
    for process in backups.family():
        with suppress(OSError):
            assert token not in Path(f"/proc/{process.pid}/environ").read_bytes()
        assert secret not in " ".join(process.cmdline())


def test_rates(backups: Backups) -> None:
    """Too many requests of a token, of a wrong one's address and of a stranger's must wait; others are served."""
    with open_api(backups, api_rate=80) as api:
        token, other = api.token(), api.client(api.token())
        client, wrong, stranger = api.client(token), api.client("wrong"), api.client()

        def limited(client: httpx.Client, path: str) -> bool:
            answer = client.get(path)
            if answer.status_code != 429:
                return False
            assert problem(answer, 429)["type"] == "urn:sendense:too-many"
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            return True

        # A minute of the clock may end in between, so twice as many are sent.
        assert any(limited(client, "/api/v1/nodes") for _ in range(161))
        assert any(limited(wrong, "/api/v1/nodes") for _ in range(5))
        assert any(limited(stranger, "/healthz") for _ in range(81))
        assert other.get("/api/v1/nodes").status_code == 200


def test_tls(backups: Backups, tls_folder: Path) -> None:
    """With certificates it speaks TLS and nothing else; and an open stream does not keep it from ending."""
    with open_api(backups, tls=tls_folder) as api:
        client = api.client(api.token())
        assert client.get("/api/v1/nodes").status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(api.url.replace("https:", "http:") + "/healthz", timeout=ANSWER_SECONDS)
        job = client.get("/api/v1/jobs").json()["jobs"][0]["id"]
        with client.stream("GET", f"/api/v1/jobs/{job}/events", headers=STREAM) as answer:
            assert answer.status_code == 200
            assert api.stop() == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"api_listen": ""}, "api_listen is empty"),
        ({"api_listen": "0.0.0.0:7780"}, "needs TLS"),
        ({"api_listen": "127.0.0.1:{busy}"}, "Address already in use"),
        ({"api_listen": "192.0.2.1:7780", "tls_dir": "{tls}"}, "Cannot assign requested address"),
        ({"api_listen": "127.0.0.1:7780", "tls_dir": "/nonexistent"}, "server-cert.pem: No such file"),
    ],
)
def test_where_it_does_not_listen(settings: dict[str, str], words: str, tmp_path: Path, tls_folder: Path) -> None:
    """An address that cannot be used, or that would be open to others without TLS, is refused with what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        known = {"busy": taken.getsockname()[1], "tls": tls_folder}
        variables = {name: text for name, text in os.environ.items() if not name.startswith("SENDENSE_")}
        variables |= {f"SENDENSE_{name.upper()}": text.format(**known) for name, text in settings.items()}
        variables |= {"SENDENSE_STATE_DIR": str(tmp_path / "state")}
        done = subprocess.run(
            [sys.executable, "-m", "sendense.api"],
            env=variables,
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
        )
    assert done.returncode == 2
    what, hint = done.stderr.splitlines()[-2:]
    assert words in what
    assert hint.startswith("  ")


def test_it_takes_no_arguments(tmp_path: Path) -> None:
    """An option is not passed over: whoever gives one does not want a hub's API on its usual address."""
    done = subprocess.run(
        [sys.executable, "-m", "sendense.api", "--help"],
        env=os.environ | {"SENDENSE_STATE_DIR": str(tmp_path), "SENDENSE_API_LISTEN": f"127.0.0.1:{free_port()}"},
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
    )
    assert done.returncode == 2
    assert "takes no arguments: --help" in done.stderr
    assert "sendense hub" in done.stderr
