"""Copies from and to every kind of server and image: whatever a server lacks or loses, the target ends up the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.support import (
    KiB,
    Lab,
    MiB,
    allocated,
    difference,
    faulty,
    info_of,
    make_disk,
    make_junk,
    make_scattered_disk,
    same_image,
    storage_daemon,
    tool,
)
from tests.servers import nbdkit, qemu_nbd

SIZE = 24 * MiB

FLAKY = {"request_bytes": 64 * KiB}
"""Many small reads, so that one in a hundred is sure to come."""

HASTY = {"tick_seconds": 0.1, "retry_seconds": 0.05}
"""What failed is tried again as soon as its delay is over."""


@dataclass(frozen=True)
class Lacking:
    """An nbdkit that lacks something: its options, those of its filters, and what it then says of its export."""

    name: str
    fact: str
    value: object
    options: Sequence[str] = ()
    settings: Sequence[str] = ()

    def __str__(self) -> str:
        return self.name


def policy(name: str, fact: str, value: int, **sizes: int) -> Lacking:
    """A server that answers EINVAL to requests of other sizes than it stated."""
    stated = {"minimum": 1, "preferred": 4096, "maximum": 32 * MiB} | sizes
    settings = [f"blocksize-{size}={count}" for size, count in stated.items()]
    return Lacking(name, fact, value, ["--filter=blocksize-policy"], [*settings, "blocksize-error-policy=error"])


LACKING = [
    Lacking("no-structured-replies", "structured", False, ["--no-sr"]),
    Lacking("no-base-allocation", "allocation", False, ["--no-sr", "--filter=noextents"]),
    Lacking("oldstyle", "protocol", "oldstyle", ["--oldstyle"]),
    Lacking("no-multi-conn", "multi_conn", False, ["--filter=multi-conn"], ["multi-conn-mode=disable"]),
    policy("minimum-512", "minimum", 512, minimum=512),
    policy("minimum-4096", "minimum", 4096, minimum=4096),
    policy("minimum-64KiB", "minimum", 64 * KiB, minimum=64 * KiB, preferred=64 * KiB),
    policy("maximum-64KiB", "maximum", 64 * KiB, maximum=64 * KiB),
    policy("maximum-32KiB", "maximum", 32 * KiB, maximum=32 * KiB),
    policy("minimum-and-maximum-4096", "maximum", 4096, minimum=4096, maximum=4096),
]
"""What a source or a target may lack."""

LACKING_TARGET = [
    Lacking("no-zero", "zero", False, ["--filter=nozero"], ["zeromode=none"]),
    Lacking(
        "no-zero-maximum-32KiB",
        "zero",
        False,
        ["--filter=nozero", "--filter=blocksize-policy"],
        ["zeromode=none", "blocksize-maximum=32768", "blocksize-error-policy=error"],
    ),
]
"""What only a target may lack."""


@pytest.mark.parametrize("lacking", LACKING, ids=str)
def test_lacking_source(lab: Lab, lacking: Lacking) -> None:
    """A source that lacks something copies into an identical qcow2."""
    source, target = make_disk(lab.path("source.raw"), SIZE), lab.path("target.qcow2")
    with nbdkit(*lacking.options, "--readonly", "file", source, *lacking.settings) as server:
        assert getattr(info_of(server.uri), lacking.fact) == lacking.value
        summary = lab.copied(server.uri, target)
    assert summary["size"] == SIZE
    assert same_image(source, target)


@pytest.mark.parametrize("lacking", LACKING + LACKING_TARGET, ids=str)
def test_lacking_target(lab: Lab, lacking: Lacking) -> None:
    """A target that lacks something, and is full of old data, ends up identical, and is verified."""
    source, target = make_disk(lab.path("source.raw"), SIZE), make_junk(lab.path("target.raw"), SIZE)
    with nbdkit(*lacking.options, "file", target, *lacking.settings) as server:
        assert getattr(info_of(server.uri), lacking.fact) == lacking.value
        summary = lab.copied(source, server.uri, "--verify")
    assert summary["verified"]
    assert difference(source, target) is None


@pytest.mark.parametrize("operation", ["trim", "flush"])
def test_target_without(lab: Lab, operation: str) -> None:
    """A target without trim, or without flush, ends up identical."""
    source, target = make_disk(lab.path("source.raw"), SIZE), make_junk(lab.path("target.raw"), SIZE)
    with nbdkit(*faulty(lab, target, without=operation)) as server:
        assert getattr(info_of(server.uri), operation) is False
        result = lab.copy(source, server.uri)
    assert result.status == 0
    assert ("cannot flush" in result.stderr) == (operation == "flush")
    assert difference(source, target) is None


@pytest.mark.parametrize("size", [0, 1, 511, 1_000_001])
@pytest.mark.parametrize("name", ["target.raw", "target.qcow2"])
def test_odd_size_to_image(lab: Lab, size: int, name: str) -> None:
    """A disk whose size is no multiple of anything becomes an image of that size: for qcow2 rounded up to a sector."""
    source, target = make_disk(lab.path("source.raw"), size), lab.path(name)
    summary = lab.copied(source, target, "--verify")
    assert (summary["size"], summary["copied"]) == (size, summary["data"])
    if name.endswith(".raw"):
        assert target.stat().st_size == size
        assert difference(source, target) is None
    else:
        assert same_image(source, target)


@pytest.mark.parametrize("size", [0, 1, 511, 1_000_001])
def test_odd_size_to_larger_export(lab: Lab, size: int) -> None:
    """A disk of any size fits a larger export; what lies behind it there is left alone."""
    source, target = make_disk(lab.path("source.raw"), size), make_junk(lab.path("target.raw"), 2 * MiB)
    with nbdkit("file", target) as server:
        assert lab.copied(source, server.uri, "--verify")["size"] == size
    assert difference(source, target) is None
    with target.open("rb") as file:
        file.seek(size)
        assert set(file.read()) == {0xA5}


@pytest.mark.parametrize(("size", "minimum"), [(511, 4096), (1_000_001, 512), (6 * MiB + 3, 4096)])
def test_odd_size_to_export_of_blocks(lab: Lab, size: int, minimum: int) -> None:
    """A disk that ends inside a block of its target can be written there, and be verified."""
    lacking = policy("blocks", "minimum", minimum, minimum=minimum)
    source, target = make_disk(lab.path("source.raw"), size), make_junk(lab.path("target.raw"), 8 * MiB)
    with nbdkit(*lacking.options, "file", target, *lacking.settings) as server:
        assert lab.copied(source, server.uri, "--verify")["verified"]
    assert difference(source, target) is None


def test_odd_hole_at_the_end_to_export_of_blocks(lab: Lab) -> None:
    """A disk that ends with a hole inside a block of its target hides the old data there, and is verified."""
    lacking = policy("blocks", "minimum", 4096, minimum=4096)
    source, target = make_disk(lab.path("source.raw"), 6 * MiB), make_junk(lab.path("target.raw"), 16 * MiB)
    with source.open("ab") as file:
        file.truncate(12 * MiB + 3)
    with nbdkit(*lacking.options, "file", target, *lacking.settings) as server:
        assert lab.copied(source, server.uri, "--verify")["zero"] > 6 * MiB
    assert difference(source, target) is None


def test_target_is_zero(lab: Lab) -> None:
    """With --target-is-zero, the holes of the source stay holes of the target."""
    source, target = make_disk(lab.path("source.raw"), SIZE), lab.path("target.raw")
    target.touch()
    with target.open("r+b") as file:
        file.truncate(SIZE)
    with nbdkit("--filter=nozero", "file", target, "zeromode=none") as server:
        lab.copied(source, server.uri, "--target-is-zero", "--verify")
    assert difference(source, target) is None
    assert allocated(target) < SIZE // 2


def test_all_zero_source(lab: Lab) -> None:
    """A disk of allocated zeroes is read, found to be zero, and takes no room in the image."""
    source, target = lab.path("source.raw"), lab.path("target.qcow2")
    source.write_bytes(bytes(SIZE))
    lab.copied(source, target, "--verify")
    assert same_image(source, target)
    assert allocated(target) < MiB


def test_all_zero_source_onto_old_data(lab: Lab) -> None:
    """An empty disk hides all the old data of its target."""
    source, target = lab.path("source.raw"), make_junk(lab.path("target.raw"), SIZE)
    with source.open("wb") as file:
        file.truncate(SIZE)
    with nbdkit("file", target) as server:
        assert lab.copied(source, server.uri)["copied"] == 0
    assert difference(source, target) is None


@pytest.mark.parametrize(
    "options",
    [
        "qcow2",
        "qcow2 -o data_file=DATA",
        "vmdk",
        "vmdk -o subformat=streamOptimized",
        "vmdk -o subformat=monolithicFlat",
        "vhdx",
    ],
)
def test_local_image(lab: Lab, options: str) -> None:
    """A local image of another format than raw is served by a child, and copied."""
    disk, source = make_disk(lab.path("disk.raw"), SIZE), lab.path(f"source.{options.split()[0]}")
    words = options.replace("DATA", str(lab.path("data"))).split()
    tool("qemu-img", "convert", "-f", "raw", "-O", *words, disk, source)
    target = lab.path("target.qcow2")
    lab.copied(source, target)
    assert same_image(disk, target)
    assert allocated(target) < 6 * MiB


def test_local_image_with_backing_file(lab: Lab) -> None:
    """A qcow2 overlay is copied as its guest sees it: its own data, zeroes that hide, and the backing file's rest."""
    disk, overlay, target = make_disk(lab.path("base.raw"), SIZE), lab.path("overlay.qcow2"), lab.path("target.qcow2")
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, overlay)
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 0xab 64k 128k", "-c", "write -z 512k 512k", overlay)
    lab.copied(overlay, target)
    assert same_image(overlay, target, "qcow2")
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", target, lab.path("seen.raw"))
    seen = lab.path("seen.raw").read_bytes()
    assert seen[64 * KiB : 192 * KiB] == b"\xab" * 128 * KiB
    assert seen[512 * KiB : MiB] == bytes(512 * KiB)
    assert seen[:1000] == disk.read_bytes()[:1000]


def test_local_image_backed_by_an_export(lab: Lab) -> None:
    """A qcow2 overlay whose backing file is an NBD export is copied as its guest sees it."""
    disk, overlay, target = make_disk(lab.path("base.raw"), SIZE), lab.path("overlay.qcow2"), lab.path("target.qcow2")
    with nbdkit("--readonly", "file", disk) as server:
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", server.uri, overlay)
        lab.copied(overlay, target)
    assert same_image(disk, target)


def test_huge_sparse_source(lab: Lab) -> None:
    """A disk of 1 TiB that holds 100 MB makes an image of about that size, and only the 100 MB are moved."""
    source, target = lab.path("source.raw"), lab.path("target.qcow2")
    pattern = make_disk(lab.path("pattern.raw"), MiB).read_bytes()[:-200_000] * 5
    with source.open("wb") as file:
        for number in range(25):
            file.seek(number * 40 * 2**30 + number * 4096)
            file.write(pattern[: 4 * MiB])
        file.truncate(2**40)
    with nbdkit("--readonly", "file", source) as server:
        summary = lab.copied(server.uri, target, "--verify")
    assert summary["size"] == 2**40
    assert summary["copied"] == summary["data"] < 25 * (4 * MiB + 128 * KiB)
    assert allocated(target) < 110 * MiB
    assert same_image(source, target)


def test_tcp(lab: Lab) -> None:
    """Both ends over TCP, with named exports."""
    source, target = make_disk(lab.path("source.raw"), SIZE), make_junk(lab.path("target.raw"), SIZE)
    with (
        nbdkit("--readonly", "file", source, tcp=True) as reading,
        qemu_nbd(target, "--shared=4", "--persistent", tcp=True, export="disk one/ü") as writing,
    ):
        lab.copied(reading.uri, writing.uri, "--verify")
    assert difference(source, target) is None


def test_tls(lab: Lab, tls_folder: Path) -> None:
    """Both ends over TLS, with the servers' certificates checked."""
    source, target = make_disk(lab.path("source.raw"), SIZE), make_junk(lab.path("target.raw"), SIZE)
    with (
        nbdkit("--readonly", "file", source, tcp=True, tls=tls_folder) as reading,
        nbdkit("file", target, tcp=True, tls=tls_folder) as writing,
    ):
        assert reading.uri.startswith("nbds://")
        lab.copied(reading.uri, writing.uri, "--verify")
    assert difference(source, target) is None


def test_storage_daemon(lab: Lab) -> None:
    """A qcow2 full of old data, behind qemu-storage-daemon, ends up identical over several connections."""
    source, target = make_disk(lab.path("source.raw"), SIZE), lab.path("target.qcow2")
    tool("qemu-img", "create", "-q", "-f", "qcow2", target, str(SIZE))
    tool("qemu-io", "-f", "qcow2", "-c", f"write -P 0xa5 0 {SIZE}", target)
    with storage_daemon(target, "qcow2", export="disk") as server:
        assert info_of(server.uri).multi_conn
        result = lab.copy(source, server.uri, "--verify")
    assert (result.status, result.summary["verified"], result.stderr) == (0, True, "")
    assert same_image(source, target)


def test_many_batches(lab: Lab) -> None:
    """A disk of several batches, each with a thousand small extents, is identical after two processes copied it."""
    source, target = make_scattered_disk(lab.path("source.raw"), 2000), lab.path("target.qcow2")
    with nbdkit("--readonly", "file", source) as server:
        assert lab.copied(server.uri, target, "--verify")["batches"] >= 4
    assert same_image(source, target)


@pytest.mark.parametrize("options", [[], ["--persistent"]], ids=["ends-with-its-client", "persistent"])
def test_single_client_source(lab: Lab, options: list[str]) -> None:
    """A qemu-nbd that takes one client only, as the source: one connection does it all, and the copy says so."""
    source, target = make_disk(lab.path("source.raw"), SIZE), lab.path("target.qcow2")
    with qemu_nbd(source, "--read-only", *options) as server:
        result = lab.run("copy", server.uri, target, "--workers", "4", "--verify", "--json")
    assert result.status == 0, result.stderr
    assert "one client" in result.stderr
    assert same_image(source, target)


@pytest.mark.parametrize("options", [[], ["--persistent"]], ids=["ends-with-its-client", "persistent"])
def test_single_client_target(lab: Lab, options: list[str]) -> None:
    """A qemu-nbd that takes one client only, as the target: one connection does it all, and the copy says so."""
    source, target = make_scattered_disk(lab.path("source.raw"), 1100), lab.path("target.qcow2")
    tool("qemu-img", "create", "-q", "-f", "qcow2", target, str(source.stat().st_size))
    with qemu_nbd(target, *options, image_format="qcow2") as server:
        result = lab.run("copy", source, server.uri, "--workers", "4", "--verify", "--json")
    assert result.status == 0, result.stderr
    assert "one client" in result.stderr
    assert result.summary["batches"] > 1
    assert same_image(source, target)


def test_flaky_source(lab: Lab) -> None:
    """A source that fails one read in a hundred is copied by trying again."""
    source, target = make_scattered_disk(lab.path("source.raw"), 1500), lab.path("target.qcow2")
    with nbdkit("--readonly", "--filter=error", "file", source, "error-pread-rate=1%") as server:
        summary = lab.copied(server.uri, target, **FLAKY, **HASTY)
    assert summary["retries"] > 0
    assert same_image(source, target)


def test_bad_sector(lab: Lab) -> None:
    """A sector that never reads fails the copy, which names it; after its repair a resume copies that cluster only."""
    source, target, trigger = make_disk(lab.path("source.raw"), SIZE), lab.path("target.qcow2"), lab.path("broken")
    trigger.touch()
    sector = SIZE // 2 + 5 * 64 * KiB + 8 * KiB
    with nbdkit("--readonly", *faulty(lab, source, unreadable=f"{sector}+4096", trigger=trigger)) as server:
        failed = lab.copy(server.uri, target, **HASTY)
        assert failed.status == 1, failed
        what, hint = failed.error
        cluster = sector // (64 * KiB) * 64 * KiB
        assert f"offset={cluster} length={64 * KiB}" in what
        assert "tried 3 times" in what
        assert "attempt 3 of 3" in what
        assert "--resume" in hint
        first = failed.summary
        assert (first["state"], target.exists()) == ("failed", False)

        trigger.unlink()
        summary = lab.copied(server.uri, target, "--resume", "--verify", **HASTY)
    assert summary["copied"] == 64 * KiB
    assert summary["already_done"] == summary["data"] - 64 * KiB
    assert same_image(source, target)


def test_lost_write(lab: Lab) -> None:
    """A write that the target confirmed and lost is found by --verify, and only its batch is copied again."""
    source = make_scattered_disk(lab.path("source.raw"), 1030)
    size = source.stat().st_size
    target, trigger = make_junk(lab.path("target.raw"), size), lab.path("forgetful")
    lost = 700 * 128 * KiB
    trigger.touch()
    with nbdkit(*faulty(lab, target, forgetful=f"{lost}+4096", trigger=trigger)) as server:
        found = lab.copy(source, server.uri, "--verify")
        assert found.status == 3
        what, hint = found.error
        first = found.summary
        assert (first["state"], first["batches"], len(first["differences"])) == ("different", 3, 1)
        wrong = first["differences"][0]
        assert wrong["offset"] <= lost < wrong["offset"] + wrong["length"]
        assert wrong["length"] < size // 2
        assert what.endswith(f"offset={wrong['offset']} length={wrong['length']}")
        assert "--resume --verify" in hint

        trigger.unlink()
        second = lab.copied(source, server.uri, "--resume", "--verify")
    assert (second["verified"], second["digest"]) == (True, first["digest"])
    assert second["copied"] == 512 * 64 * KiB
    assert second["already_done"] == second["data"] - second["copied"]
    assert difference(source, target) is None


def test_lost_write_without_verify(lab: Lab) -> None:
    """Without --verify, the summary does not claim that the target was verified."""
    source, target = make_disk(lab.path("source.raw"), SIZE), make_junk(lab.path("target.raw"), SIZE)
    trigger = lab.path("forgetful")
    trigger.touch()
    with nbdkit(*faulty(lab, target, forgetful="0+4096", trigger=trigger)) as server:
        assert "verified" not in lab.copied(source, server.uri)
    assert difference(source, target) == 0


def test_target_is_not_zero(lab: Lab) -> None:
    """--verify finds the old data of a target that was said to be zero; copying those parts again hides it."""
    source, target = make_disk(lab.path("source.raw"), SIZE), make_junk(lab.path("target.raw"), SIZE)
    with nbdkit("file", target) as server:
        assert lab.copy(source, server.uri, "--target-is-zero", "--verify").status == 3
        lab.copied(source, server.uri, "--resume", "--verify")
    assert difference(source, target) is None
