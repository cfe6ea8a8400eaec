"""Backups that cannot be: told in two lines, with the points that are there untouched, and nothing left behind."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sendense.repository.points import Point
from tests.backup import Backups, MiB, edit_settings, open_backups, patiently, small_disk
from tests.integration.support import KiB
from tests.site import LabSite, open_site

VM = "web01"
END_SECONDS = 10.0


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Two machines, and those for special cases."""
    with open_site(vms=2, disk_size=32 * MiB, fill=6 * MiB) as site:
        yield site


@pytest.fixture(scope="module")
def first(site: LabSite) -> Iterator[tuple[Backups, dict[int, Path]]]:
    """A repository with one point, and what the machine had then."""
    with open_backups(site) as backups:
        kept = backups.keep(VM)
        backups.backup(VM)
        site.client.write(VM, 2 * MiB, os.urandom(4 * MiB))
        yield backups, kept


class Place:
    """A repository with one point, into which a second one is refused."""

    def __init__(self, backups: Backups, point: Point, kept: dict[int, Path]) -> None:
        self.backups, self.point, self.kept = backups, point, kept

    def refuse(self, *options: str, vm: str = VM, status: int = 2, **settings: object) -> str:
        """The error of a backup that has to leave everything as it was."""
        text = self.backups.refused(vm, *options, status=status, **settings)
        self.check()
        return text

    def check(self) -> None:
        """The first point is there, whole, and alone; nothing is left of the second."""
        assert self.backups.points() == [self.point]
        self.backups.check(self.point, self.kept)
        assert self.backups.leftovers() == []


@pytest.fixture
def place(site: LabSite, first: tuple[Backups, dict[int, Path]]) -> Iterator[Place]:
    """A copy of that repository, and a state folder of its own."""
    with open_backups(site) as backups:
        shutil.copytree(first[0].root, backups.root)
        yield Place(backups, first[0].points(VM)[0], first[1])


@pytest.mark.parametrize(
    ("vm", "what"),
    [
        ("nobody", "nobody"),
        ("vm-9999", "vm-9999"),
        ("/Lab/vm/production/nobody", "nobody"),
        ("404842d4-ffff-ffff-ffff-885d813b298e", "404842d4-ffff"),
        ("", ""),
        ("../../etc", "../../etc"),
    ],
)
def test_unknown_machine(place: Place, vm: str, what: str) -> None:
    """A VM that is not there is refused by the name that was given."""
    assert what in place.refuse(vm=vm)


def test_ambiguous_name(site: LabSite, place: Place) -> None:
    """A name that several VMs have is refused with the candidates, each in a form that can be given instead."""
    text = place.refuse(vm="test01")
    for vm in site.client.vms():
        if vm.name == "test01":
            assert vm.id in text or vm.instance_uuid in text or "/team-" in text
    assert text.count("team-") == 2


def test_wrong_password(site: LabSite, place: Place, tmp_path: Path) -> None:
    """A login that vCenter refuses is told, with the settings to look at, and without the password."""
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("not-the-password-3141\n")
    text = place.refuse(status=1, config=edit_settings(site, tmp_path, password_file=str(wrong)))
    assert "incorrect user name or password" in text
    assert "password_file" in text
    assert "3141" not in text


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_password_that_others_may_read(site: LabSite, place: Place, tmp_path: Path, mode: int) -> None:
    """A password file that others may read is refused."""
    path = tmp_path / "password"
    path.touch(mode)
    path.chmod(mode)
    path.write_text(site.password)
    text = place.refuse(config=edit_settings(site, tmp_path, password_file=str(path)))
    assert str(path) in text
    assert "chmod" in text


def test_missing_password(site: LabSite, place: Place, tmp_path: Path) -> None:
    """A password file that is not there is named."""
    path = tmp_path / "missing"
    assert str(path) in place.refuse(config=edit_settings(site, tmp_path, password_file=str(path)))


@pytest.mark.parametrize("thumbprint", [":".join(["AA"] * 20), ""])
def test_certificate_that_nobody_vouches_for(site: LabSite, place: Place, tmp_path: Path, thumbprint: str) -> None:
    """A certificate with another thumbprint, or of an unknown authority, is refused with the thumbprint that it has."""
    text = place.refuse(status=1, config=edit_settings(site, tmp_path, thumbprint=thumbprint))
    pinned = next(line for line in site.config.read_text().splitlines() if line.startswith("thumbprint"))
    assert "certificate" in text
    assert pinned.split('"')[1] in text


def test_site_that_does_not_answer(site: LabSite, place: Place, tmp_path: Path) -> None:
    """A vCenter that is not there is told with its address."""
    config = edit_settings(site, tmp_path, vcenter="127.0.0.1:1")
    assert "127.0.0.1:1" in place.refuse(status=1, config=config)


def test_unknown_site(place: Place) -> None:
    """A site that the settings do not have is refused with those that they have."""
    assert "Known are: lab" in place.refuse("--site", "moon")


def test_full_disk(site: LabSite, place: Place) -> None:
    """A repository without room: told with the place and the cure; with room again the same job goes on."""
    with small_disk(20 * MiB) as disk:
        backups = Backups(site, place.backups.folder, disk.path / "repository")
        shutil.copytree(place.backups.root, backups.root)
        used = backups.repository.usage()
        disk.remount(f"size={(used + 2 * MiB) // KiB}k")
        text = backups.refused(VM, "--json", status=1)
        assert "o space left" in text or "is full" in text
        there = Place(backups, place.point, place.kept)
        assert backups.points() == [place.point]
        backups.check(place.point, place.kept)
        assert site.client.snapshots(VM) == []
        assert backups.survivors() == []
        disk.remount(f"size={(used + 12 * MiB) // KiB}k")
        kept = backups.keep(VM)
        view = backups.succeeded(backups.run("jobs", "resume", resume_of(text), "--json"))
        assert view.id == resume_of(text)
        backups.check(backups.points()[-1], kept)
        assert there.backups.leftovers() == []


def test_disk_without_any_room(site: LabSite, place: Place) -> None:
    """A repository on which not even a folder can be made costs nothing but the backup."""
    with small_disk(20 * MiB) as disk:
        backups = Backups(site, place.backups.folder, disk.path / "repository")
        shutil.copytree(place.backups.root, backups.root)
        with (disk.path / "ballast").open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4 * KiB)):
                    pass
            except OSError:
                pass
        text = backups.refused(VM, status=1)
        assert "o space left" in text
        assert backups.points() == [place.point]
        assert backups.leftovers() == []


def test_read_only_repository(site: LabSite, place: Place) -> None:
    """A repository that is mounted read-only is told so, before a snapshot is made."""
    with small_disk(40 * MiB) as disk:
        backups = Backups(site, place.backups.folder, disk.path / "repository")
        shutil.copytree(place.backups.root, backups.root)
        disk.remount("ro")
        text = backups.refused(VM, status=1)
        assert "ead-only" in text
        assert backups.points() == [place.point]
        assert backups.leftovers() == []
        view = backups.job()
        assert view is None  # no hub is left that could be asked


def test_newer_repository(place: Place) -> None:
    """A repository of a newer format is left alone."""
    marker = place.backups.root / "repository.json"
    marker.write_text('{"format": 2}\n')
    text = place.backups.refused(VM)
    assert "format 2" in text
    marker.write_text('{"format": 1}\n')
    place.check()


def test_newer_point(site: LabSite, place: Place) -> None:
    """A point of a newer format is not built on, and stays as it is."""
    path = place.backups.root / f"vms/{place.point.vm.uuid}/points/{place.point.id}/point.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 2}))
    kept = place.backups.keep(VM)
    result = place.backups.run("backup", VM, "--json")
    view = place.backups.succeeded(result)
    assert [disk.mode for disk in view.disks] == ["full", "full"]
    broken = place.backups.repository.broken()
    assert [(each.id, "format 2" in each.reason) for each in broken] == [(place.point.id, True)]
    (point,) = place.backups.repository.points()
    place.backups.check(point, kept)
    path.write_text(json.dumps(manifest))
    place.backups.check(place.point, place.kept)


def test_folder_that_is_no_repository(place: Place, tmp_path: Path) -> None:
    """A folder with other things in it does not become a repository."""
    (tmp_path / "thesis.tex").write_text("all there is")
    assert str(tmp_path) in place.refuse(repository=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_disk_that_cannot_be_opened(site: LabSite, place: Place) -> None:
    """What nbdkit says on stderr, and nowhere else, stands in the error."""
    site.client.set(connection_limit=0)
    try:
        text = place.refuse(status=1)
    finally:
        site.client.set(connection_limit=52)
    assert "out of NFC connections" in text
    assert "disk 200" in text


def test_password_changed_meanwhile(site: LabSite, place: Place, tmp_path: Path) -> None:
    """A password that nbdkit cannot log in with any more: what it said is in the error, the password is not."""
    path = tmp_path / "password"
    path.touch(0o600)
    path.write_text(site.password)
    config = edit_settings(site, tmp_path, password_file=str(path))
    site.client.set(VM, snapshot_seconds=1.0)
    process = place.backups.start("backup", VM, "--json", config=config)
    try:
        place.backups.wait_for_step("snapshot", process)
        assert patiently(lambda: bool(site.client.snapshots(VM)), END_SECONDS)
        path.write_text("changed-meanwhile-2718")
        result = place.backups.finish(process)
    finally:
        site.client.set(VM, snapshot_seconds=0)
    text = "\n".join(result.error)
    assert result.status == 1
    assert "incorrect user name or password" in text
    assert "2718" not in result.stderr
    assert site.password not in result.stderr
    # Its snapshot could not be removed without a login; with one it can.
    path.write_text(site.password)
    assert place.backups.run("jobs", "clean", config=config).status == 0
    place.check()


def test_snapshot_that_fails(site: LabSite, place: Place) -> None:
    """A snapshot that vCenter refuses again and again fails the job with vCenter's words; once, it is tried again."""
    site.client.fail_next("CreateSnapshot", "GenericVmConfigFault", times=30)
    try:
        assert "GenericVmConfigFault" in place.refuse(status=1)
    finally:
        site.stop()
        state = site.folder / "state.json"
        state.write_text(json.dumps({**json.loads(state.read_text()), "fail_next": {}}))
        site.start()
    site.client.fail_next("CreateSnapshot", "GenericVmConfigFault")
    site.client.fail_next("RemoveSnapshot", "GenericVmConfigFault")
    site.client.fail_next("QueryChangedDiskAreas", "drop")
    kept = place.backups.keep(VM)
    place.backups.backup(VM)
    place.backups.check(place.backups.points()[-1], kept)
    assert place.backups.leftovers() == []


def test_guest_that_cannot_be_quiesced(site: LabSite, place: Place) -> None:
    """A guest that does not quiesce fails the backup, which says how to go on without."""
    site.client.fail_next("CreateSnapshot", "ApplicationQuiesceFault")
    assert "--no-quiesce" in place.refuse(status=1)


def test_unreadable_places(site: LabSite, place: Place) -> None:
    """A place that does not read fails the backup, which names it; what was read is kept for when it does."""
    backups = place.backups
    site.client.set(VM, read_errors={"areas": [[3 * MiB, 4096]]})
    try:
        text = backups.refused(VM, status=1)
    finally:
        site.client.set(VM, read_errors={"areas": []})
    assert "disk 2000" in text
    assert "VixDiskLib_Read" in text
    assert backups.points() == [place.point]
    kept = backups.keep(VM)
    before = backups.repository.unfinished()
    view = backups.succeeded(backups.run("jobs", "resume", resume_of(text), "--json"))
    assert [view.point] == [draft.id for draft in before]
    backups.check(backups.points()[-1], kept)
    assert backups.leftovers() == []


def resume_of(error: str) -> str:
    """The job that an error says can be resumed."""
    return error.split("sendense jobs resume ")[1].split()[0]


class Spy:
    """Looks at the command lines and environments of all processes but the lab's, and at Redis, again and again."""

    def __init__(self, backups: Backups, secret: str) -> None:
        self._backups, self._secret = backups, secret.encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)
        self.found: set[str] = set()
        self.looks = self.nbdkits = 0

    def __enter__(self) -> "Spy":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(0.02):
            for process in psutil.process_iter():
                for part in ("cmdline", "environ"):
                    try:
                        text = Path(f"/proc/{process.pid}/{part}").read_bytes()
                    except OSError:
                        continue
                    if self._secret in text:
                        self.found.add(f"{part} of {text[:200]!r}")
                    self.nbdkits += part == "cmdline" and text.startswith(b"nbdkit")
            self.looks += 1


def test_no_secret_anywhere(site: LabSite, place: Place) -> None:
    """
    The password is nowhere but in its file: not in Redis, tasks, events, logs, argv, environments or manifests.

    Not after a backup that succeeds, nor after one whose nbdkit complains about its login.
    """
    secret = site.password
    site.client.set(VM, read_rate=4 * MiB)
    with place.backups.hub(), Spy(place.backups, secret) as spy:
        view = place.backups.backup(VM, "--verify")
        site.client.set(connection_limit=0)
        result = place.backups.run("backup", VM, "--json")
        site.client.set(connection_limit=52)
        assert secret not in result.stdout + result.stderr
    site.client.set(VM, read_rate=0)
    assert spy.found == set()
    assert spy.looks > 10
    assert spy.nbdkits
    searched = 0
    for folder in (place.backups.state, place.backups.root):
        for path in folder.rglob("*"):
            if path.is_file():
                searched += 1
                assert secret.encode() not in path.read_bytes(), path
    assert searched > 10
    # All that Redis was ever told is in its append-only file, uncompressed.
    log = b"".join(path.read_bytes() for path in (place.backups.state / "hub/appendonlydir").iterdir())
    assert all(word.encode() in log for word in (view.id, view.point))
