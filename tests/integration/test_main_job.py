"""The main job on real input: a partitioned disk with a real file system, from nbdkit into a qcow2."""

import json
import os
import sysconfig
from pathlib import Path

import pytest

from tests.integration.support import Lab, MiB, compare_images, same_image, tool
from tests.servers import nbdkit

MAKE_DISK = Path(__file__).resolve().parents[2] / "deploy" / "make-disk"


def cut_partition(disk: Path, partition: Path) -> None:
    """Copy the only partition of a raw disk into a file of its own."""
    table = json.loads(tool("sfdisk", "--json", disk))["partitiontable"]
    (found,) = table["partitions"]
    start, length = found["start"] * table["sectorsize"], found["size"] * table["sectorsize"]
    with disk.open("rb") as whole, partition.open("wb") as part:
        whole.seek(start)
        while length:
            part.write(whole.read(min(MiB, length)))
            length -= min(MiB, length)


def test_main_job(lab: Lab) -> None:
    """A disk with ext4 arrives identical: by qemu-img, by e2fsck, and by a file that was put in and is taken out."""
    folders = [Path(sysconfig.get_path("stdlib")), lab.path("noise")]
    folders[1].mkdir()
    for number in range(5):
        (folders[1] / f"{number}").write_bytes(os.urandom(30 * MiB + number))
    content = sum(int(tool("du", "--summarize", "--block-size=1M", folder).split()[0]) for folder in folders)
    disk, target = lab.path("disk.raw"), lab.path("disk.qcow2")
    tool(MAKE_DISK, disk, str(content + content // 4 + 128), *folders)
    with nbdkit("--readonly", "file", disk) as server:
        result = lab.run("copy", server.uri, target, "--workers", "2", "--verify", "--json")
    assert result.status == 0, result.stderr
    summary = result.summary
    assert (summary["state"], summary["verified"], summary["already_done"]) == ("succeeded", True, 0)
    assert summary["data"] + summary["zero"] == summary["size"] == disk.stat().st_size
    assert summary["copied"] == summary["data"] > content * MiB // 2
    assert summary["batches"] > 1
    assert same_image(disk, target)

    copy, partition, name = lab.path("copy.raw"), lab.path("partition"), "sysconfig.py"
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", target, copy)
    cut_partition(copy, partition)
    tool("e2fsck", "-f", "-n", partition)
    tool("debugfs", "-R", f"dump /{folders[0].name}/{name} {lab.path(name)}", partition)
    assert lab.path(name).read_bytes() == (folders[0] / name).read_bytes()


def test_damage_is_seen(lab: Lab) -> None:
    """The checks of these tests do tell disks apart: one byte is enough."""
    disk, target = lab.path("disk.raw"), lab.path("disk.qcow2")
    disk.write_bytes(b"\xa5" * MiB)
    lab.copied(disk, target)
    assert same_image(disk, target)
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 0xa4 70000 1", target)
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", target, lab.path("copy.raw"))
    with pytest.raises(AssertionError, match="Content mismatch at offset"):
        compare_images(disk, target)
