"""`sendense doctor`: every verdict on a real server or a real fault, then the command, then the machine check."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sendense.errors import ClaimLost
from sendense.nbd import machine
from sendense.nbd.connect import connect
from sendense.nbd.probe import ORDER, Report, Stage, diagnose, probe
from sendense.nbd.uri import parse
from tests.servers import GREETING, free_port, full_queue, nbdkit, qemu_nbd, talker

PATIENT = 20.0
"""Seconds for what works: no noise on the machine takes as long."""

BRIEF = 2.0
"""Seconds for what never answers, while all else around it must."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of 1 MiB of random data."""
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(2**20))
    return path


def stage(report: Report, name: str) -> Stage:
    """The line of the table with that name."""
    return report.stages[ORDER.index(name)]


def assert_stopped(report: Report, verdict: str, at: str, result: str) -> None:
    """The report's verdict came from this stage, which has this result, and no later stage was reached."""
    found = report.finding
    assert (found.verdict, found.stage) == (verdict, at)
    assert found.detail
    assert found.fix
    assert tuple(line.name for line in report.stages) == ORDER
    assert stage(report, at).result == result
    assert {line.result for line in report.stages[ORDER.index(at) + 1 :]} <= {"skipped"}


@pytest.mark.parametrize("tcp", [False, True])
def test_ok(tcp: bool) -> None:
    """A healthy server passes every stage, over a Unix socket and over TCP."""
    with nbdkit("memory", "1M", tcp=tcp) as server:
        report = probe(server.uri, PATIENT)
    skipped = {"tls", "write"} if tcp else {"resolve", "tls", "write"}
    assert report.verdict == "ok"
    assert {line.name for line in report.stages if line.result == "skipped"} == skipped
    assert {line.result for line in report.stages} == {"ok", "skipped"}
    assert report.export
    assert report.export.size == 2**20


@pytest.mark.parametrize("tcp", [False, True])
def test_ok_with_tls(tls_folder: Path, tcp: bool) -> None:
    """A healthy TLS server passes every stage, and TLS is one of them."""
    with nbdkit("memory", "1M", tcp=tcp, tls=tls_folder) as server:
        report = probe(server.uri, PATIENT)
    assert report.verdict == "ok"
    assert stage(report, "tls").result == "ok"


def test_ok_without_multi_conn() -> None:
    """A server that takes a second client without advertising multi-conn is ok, and the detail says so."""
    with nbdkit("--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable") as server:
        report = probe(server.uri, PATIENT)
    assert report.verdict == "ok"
    assert "multi-conn is not advertised" in report.finding.detail


@pytest.mark.parametrize("size", ["1", "511", "5000"])
def test_ok_with_odd_sizes(size: str) -> None:
    """A disk smaller than the first read, or of no whole blocks, is read as far as it goes."""
    with nbdkit("memory", size) as server:
        assert probe(server.uri, PATIENT, write=True).verdict == "ok"


def test_unresolvable() -> None:
    """A name without an address stops the walk in its first stage."""
    assert_stopped(probe("nbd://hub.invalid/", PATIENT), "unresolvable", "resolve", "failed")


def test_refused() -> None:
    """Nobody listens there."""
    assert_stopped(probe(f"nbd://127.0.0.1:{free_port()}/", PATIENT), "refused", "connect", "failed")


def test_unreachable() -> None:
    """A host that does not answer the connection attempt is not blamed for its greeting."""
    with full_queue() as (uri, _):
        assert_stopped(probe(uri, BRIEF), "unreachable", "connect", "stalled")


def test_no_greeting_when_the_only_place_is_taken(image: Path) -> None:
    """The predecessor's hang gets its name, libnbd's state and the hint about the client limit."""
    with qemu_nbd(image, "--persistent", tcp=True) as server:
        other_client = connect(parse(server.uri), PATIENT)
        report = probe(server.uri, BRIEF)
        other_client.close()
    assert_stopped(report, "no-greeting", "greeting", "stalled")
    assert report.finding.state == "MAGIC.RECV_MAGIC"
    assert "--shared" in report.finding.fix


def test_no_greeting_from_a_frozen_server() -> None:
    """A stopped server sends no greeting."""
    with nbdkit("memory", "1M") as server:
        server.stop()
        assert_stopped(probe(server.uri, BRIEF), "no-greeting", "greeting", "stalled")


def test_not_nbd() -> None:
    """Another service's banner is told from an NBD greeting."""
    with talker(b"220 mail.example ESMTP Postfix (Debian/GNU)\r\n") as uri:
        assert_stopped(probe(uri, PATIENT), "not-nbd", "greeting", "failed")


def test_no_such_export(image: Path) -> None:
    """A wrong export name gets the list of those there are."""
    with qemu_nbd(image, "--shared=0", export="disk-2000") as server:
        report = probe(server.uri.replace("disk-2000", "nope"), PATIENT)
    assert_stopped(report, "no-such-export", "export", "failed")
    assert "'disk-2000'" in report.finding.detail


def test_tls_required(tls_folder: Path) -> None:
    """A server that takes TLS only is told from one without the export."""
    with nbdkit("memory", "1M", tcp=True, tls=tls_folder) as server:
        report = probe(server.uri.partition("?")[0].replace("nbds", "nbd"), PATIENT)
    assert_stopped(report, "tls-required", "tls", "failed")


def test_tls_failed_without_authority(tls_folder: Path, tmp_path: Path) -> None:
    """Without a CA file nothing is connected, and the table says so."""
    with nbdkit("memory", "1M", tcp=True, tls=tls_folder) as server:
        report = probe(server.uri.replace(str(tls_folder), str(tmp_path)), PATIENT)
    assert (report.verdict, report.finding.stage) == ("tls-failed", "tls")
    assert stage(report, "connect").detail == "not reached"


def test_tls_failed_for_another_host(tls_folder: Path) -> None:
    """A certificate for another name fails in the TLS stage."""
    with nbdkit("--ipaddr", "127.0.0.2", "memory", "1M", tcp=True, tls=tls_folder) as server:
        assert_stopped(probe(server.uri.replace("localhost", "127.0.0.2"), PATIENT), "tls-failed", "tls", "failed")


def test_tls_failed_on_a_plain_server(tls_folder: Path) -> None:
    """A server without TLS fails in the TLS stage."""
    with nbdkit("memory", "1M", tcp=True) as server:
        uri = f"{server.uri.replace('nbd', 'nbds')}?tls-certificates={tls_folder}"
        assert_stopped(probe(uri, PATIENT), "tls-failed", "tls", "failed")


def test_handshake_stalled() -> None:
    """A greeting and then nothing is a stalled handshake."""
    with talker(GREETING) as uri:
        report = probe(uri, BRIEF)
    assert_stopped(report, "handshake-stalled", "negotiation", "stalled")
    assert report.finding.state.startswith("NEWSTYLE.")


def test_handshake_stalled_in_a_plugin() -> None:
    """A server whose plugin hangs in open stalls in the export stage, and the stages before it are ok."""
    with nbdkit("--filter=delay", "memory", "1M", "delay-open=60") as server:
        report = probe(server.uri, BRIEF)
    assert report.verdict == "handshake-stalled"
    assert stage(report, "greeting").result == "ok"


def test_broken_handshake() -> None:
    """A server that dies in mid-handshake gets the verdict of a handshake that came to nothing."""
    with nbdkit("--filter=delay", "memory", "1M", "delay-open=60") as server:
        killer = threading.Timer(BRIEF, server.process.kill)
        killer.start()
        report = probe(server.uri, PATIENT)
        killer.join()
    assert report.verdict == "handshake-stalled"
    assert stage(report, report.finding.stage).result == "failed"


def test_read_stalled() -> None:
    """A server that talks and whose disk does not answer is named as that."""
    with nbdkit("--filter=delay", "pattern", "1M", "rdelay=60") as server:
        report = probe(server.uri, BRIEF, write=True)
    assert_stopped(report, "read-stalled", "first read", "stalled")
    assert report.export


def test_read_error() -> None:
    """An error of the first read is in the report in plain words."""
    with nbdkit("--filter=error", "pattern", "1M", "error-pread-rate=100%") as server:
        report = probe(server.uri, PATIENT, write=True)
    assert_stopped(report, "read-error", "first read", "failed")
    assert "Input/output error" in report.finding.detail


def test_server_lost_while_reading() -> None:
    """A server that dies under the first read is a read error."""
    with nbdkit("--filter=delay", "pattern", "1M", "rdelay=60") as server:
        killer = threading.Timer(BRIEF, server.process.kill)
        killer.start()
        report = probe(server.uri, PATIENT)
        killer.join()
    assert_stopped(report, "read-error", "first read", "failed")


@pytest.mark.parametrize(
    ("fault", "verdict", "result"),
    [("error-extents-rate=100%", "read-error", "failed"), ("delay-extents=60", "read-stalled", "stalled")],
)
def test_extents_fail(fault: str, verdict: str, result: str) -> None:
    """A server that cannot say which areas hold data fails in that stage."""
    with nbdkit(f"--filter={fault.partition('-')[0]}", "memory", "1M", fault) as server:
        assert_stopped(probe(server.uri, BRIEF), verdict, "extents", result)


def test_extents_not_offered() -> None:
    """A server without base:allocation is ok: a copy reads everything."""
    with nbdkit("--no-sr", "pattern", "1M") as server:
        report = probe(server.uri, PATIENT)
    assert report.verdict == "ok"
    assert stage(report, "extents").result == "skipped"


@pytest.mark.parametrize("read_only", [(), ("--read-only",)])
def test_single_client(image: Path, read_only: tuple[str, ...]) -> None:
    """qemu-nbd's default: the first connection works, a second one would hang; afterwards the server serves on."""
    with qemu_nbd(image, "--persistent", *read_only) as server:
        for _ in range(2):
            report = probe(server.uri, BRIEF)
            assert (report.verdict, report.finding.stage) == ("single-client", "second connection")
            assert report.finding.state == "MAGIC.RECV_MAGIC"
            assert stage(report, "second connection").result == "stalled"
            assert stage(report, "extents").result == "ok"


def test_single_client_of_nbdkit() -> None:
    """A plugin that serves one connection after the other takes one client."""
    with nbdkit(
        "eval", "thread_model=echo serialize_connections", "get_size=echo 1M", "pread=head -c $3 /dev/zero"
    ) as s:
        assert probe(s.uri, BRIEF).verdict == "single-client"


def test_many_clients(image: Path) -> None:
    """qemu-nbd with a higher limit is ok."""
    with qemu_nbd(image, "--persistent", "--shared=3") as server:
        assert probe(server.uri, PATIENT).verdict == "ok"


def test_empty() -> None:
    """An export of 0 bytes has a verdict of its own, and nothing is read from it or written to it."""
    with nbdkit("memory", "0") as server:
        assert_stopped(probe(server.uri, PATIENT, write=True), "empty", "size", "failed")


def test_write_changes_nothing(image: Path) -> None:
    """--write leaves the disk as it was."""
    before = image.read_bytes()
    with qemu_nbd(image, "--persistent", "--shared=0") as server:
        report = probe(server.uri, PATIENT, write=True)
        server.terminate()
    assert report.verdict == "ok"
    assert stage(report, "write").result == "ok"
    assert image.read_bytes() == before


def test_write_with_one_client(image: Path) -> None:
    """--write is tried on a server for one client too, whose verdict remains."""
    with qemu_nbd(image, "--persistent") as server:
        report = probe(server.uri, BRIEF, write=True)
    assert report.verdict == "single-client"
    assert stage(report, "write").result == "ok"


def test_write_to_a_read_only_export(image: Path) -> None:
    """--write refuses a read-only export by itself."""
    with qemu_nbd(image, "--persistent", "--read-only", "--shared=0") as server:
        report = probe(server.uri, PATIENT, write=True)
    assert_stopped(report, "write-error", "write", "failed")
    assert "read-only" in report.finding.detail


@pytest.mark.parametrize(
    ("fault", "verdict", "result"),
    [("error-pwrite-rate=100%", "write-error", "failed"), ("wdelay=60", "write-stalled", "stalled")],
)
def test_write_fails(fault: str, verdict: str, result: str) -> None:
    """A target that reads and cannot write is found with --write only."""
    with nbdkit(f"--filter={'error' if 'error' in fault else 'delay'}", "memory", "1M", fault) as server:
        assert probe(server.uri, BRIEF).verdict == "ok"
        assert_stopped(probe(server.uri, BRIEF, write=True), verdict, "write", result)


def test_beat_stops_the_walk() -> None:
    """Who lost the claim gets the error from beat, not a report."""

    def lose() -> None:
        raise ClaimLost("job", "batch")

    with nbdkit("--filter=delay", "pattern", "1M", "rdelay=60") as server, pytest.raises(ClaimLost):
        probe(server.uri, 60, beat=lose)


def test_diagnose_a_stall() -> None:
    """The line for a stalled copy's error names verdict, stage and cause, calling beat while it waits."""
    beats: list[int] = []
    with nbdkit("memory", "1M") as server:
        server.stop()
        line = diagnose(parse(server.uri), BRIEF, lambda: beats.append(1))
    assert line.startswith("doctor: no-greeting in stage greeting: connected, but no greeting in 2.")
    assert "\n" not in line
    assert len(beats) >= 3


def test_diagnose_what_works(image: Path) -> None:
    """Where nothing is wrong any more, the line says so, and a server for one client is not asked for a second."""
    began = time.monotonic()
    with qemu_nbd(image, "--persistent") as server:
        assert diagnose(parse(server.uri), 60) == "doctor: ok, a new connection works and reads"
    assert time.monotonic() - began < 30


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `sendense doctor ARGS` as a user's shell does, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "sendense", "doctor", *args],
        capture_output=True,
        env={**os.environ, **environment},
        text=True,
        timeout=60,
    )


def test_command_json(image: Path) -> None:
    """--json prints one object of the promised shape and nothing else."""
    with qemu_nbd(image, "--persistent", "--shared=0") as server:
        done = run(server.uri, "--json")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(answer) == {"verdict", "stage", "state", "detail", "fix", "stages", "export"}
    assert answer["verdict"] == "ok"
    assert [line["name"] for line in answer["stages"]] == list(ORDER)
    export = answer["export"]
    assert (export["size"], export["multi_conn"], export["read_only"]) == (2**20, True, False)
    assert export["block_sizes"]["maximum"] == 32 * 2**20
    assert export["contexts"] == ["base:allocation"]
    assert "multi_conn" in export["flags"]


def test_command_json_of_a_failure() -> None:
    """A failure is the same object on stdout, without an export, and exit status 1."""
    done = run(f"nbd://127.0.0.1:{free_port()}/", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert (answer["verdict"], answer["stage"], answer["export"]) == ("refused", "connect", None)


def test_command_table(image: Path) -> None:
    """Without a terminal the table is plain text of at most 80 columns, with the verdict and the fix in plain words."""
    with qemu_nbd(image, "--persistent") as server:
        done = run(server.uri, "--timeout", str(BRIEF), COLUMNS="80")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    table, _, verdict = done.stdout.rpartition("single-client")
    assert max(map(len, table.splitlines())) <= 80
    assert all(name in table for name in ORDER)
    assert "a second one would hang" in verdict
    assert "MAGIC.RECV_MAGIC" in verdict
    assert "\nFix: " in verdict


@pytest.mark.parametrize(
    "args",
    [
        ("nbd:/x",),
        ("http://x/",),
        ("/etc/passwd",),
        ("--write",),
        ("nbd://hub/", "--timeout", "-1"),
        ("nbd://hub/", "--timeout", "0"),
        ("nbd://hub/", "--timeout", "nan"),
        ("nbd://hub/", "--timeout", "soon"),
        ("nbd:/x", "--json"),
    ],
)
def test_command_wrong_usage(args: tuple[str, ...]) -> None:
    """Wrong usage ends with status 2, an explanation on stderr and nothing on stdout."""
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_machine_is_ready() -> None:
    """This machine, which runs these tests, has all that is needed; vddk is named, and needed by nobody here."""
    done = run("--json")
    answer = json.loads(done.stdout)
    checks = {check["name"]: check for check in answer["checks"]}
    assert (done.returncode, answer["verdict"]) == (0, "ok")
    assert all(check["ok"] for check in checks.values() if check["required"])
    assert not checks["nbdkit vddk plugin"]["required"]


def test_machine_without_programs() -> None:
    """What is missing is named with the command that gets it, and the exit status is 1."""
    done = run(PATH="/nonexistent", COLUMNS="80")
    assert done.returncode == 1
    assert "qemu-utils" in done.stdout
    assert "not ready" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("script", "found"),
    [("echo nbdkit 1.10.2", "1.10.2"), ("exit 3", ""), ("exec sleep 60", ""), ("echo nothing of note", "")],
)
def test_machine_with_a_bad_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: str) -> None:
    """A program that is too old, broken, hanging or mute does not pass, and does not hold the check up."""
    program = tmp_path / "nbdkit"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "COMMAND_SECONDS", 1.0)
    check = {check.name: check for check in machine.check_machine()}["nbdkit"]
    assert (check.ok, check.found, check.required) == (False, found, True)
    assert check.fix == "apt install nbdkit"
