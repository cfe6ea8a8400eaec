"""A login at the lab's vCenter, and all the ways in which it can be refused, lost and won back."""

import logging
import os
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sendense.errors import LoginRefused, PermissionMissing, SessionLost, SiteBusy, SiteFault, SiteUnreachable, VmGone
from sendense.settings import Site
from sendense.vsphere import changes, connection, inventory, power, snapshot
from sendense.vsphere.connection import Connection
from sendense.vsphere.session import Session, no_beat, open_session
from tests.site import LabSite, MiB, open_site

NAME = "sendense-session"


@pytest.fixture(scope="module")
def lab() -> Iterator[LabSite]:
    """A site with two VMs of one small disk each."""
    with open_site(vms=2, disks=1, disk_size=16 * MiB) as site:
        yield site


def settings_of(lab: LabSite) -> Site:
    """The lab's settings, as the lab wrote them."""
    return Site.model_validate(tomllib.loads(lab.config.read_text())["sites"]["lab"])


@pytest.fixture
def site(lab: LabSite) -> Site:
    """Settings of the lab."""
    return settings_of(lab)


@pytest.fixture
def session(site: Site) -> Iterator[Session]:
    """A login at the lab."""
    with open_session("lab", site) as session:
        yield session


@contextmanager
def before_request(number: int, act: Callable[[], Any]) -> Iterator[list[int]]:
    """Calls `act` before the request of that number, counted from 0; a list whose length is how many there were."""
    seen: list[int] = []
    original = Connection.request

    def request(self: Connection, *args: Any, **more: Any) -> None:
        seen.append(len(seen))
        if len(seen) == number + 1:
            act()
        original(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "request", request)
        yield seen


def test_the_thumbprint_is_learned(lab: LabSite, site: Site, session: Session) -> None:
    """The session knows the certificate's thumbprint, also where it was verified instead of pinned."""
    assert session.thumbprint == site.thumbprint
    verified = site.model_copy(update={"thumbprint": "", "ca_file": lab.folder / "ca.pem"})
    with open_session("lab", verified) as other:
        assert other.thumbprint == site.thumbprint
        assert inventory.list_vms(other)


def test_a_wrong_password(lab: LabSite, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password is refused as such; neither it nor the right one is in any message or log."""
    caplog.set_level(logging.DEBUG)
    wrong = tmp_path / "password"
    wrong.touch(0o600)
    wrong.write_text("wr0ng-pass&word\n")
    with pytest.raises(LoginRefused, match=r"operator@lab\.local") as caught:
        open_session("lab", site.model_copy(update={"password_file": wrong}))
    with open_session("lab", site) as session:
        said = [
            str(caught.value),
            repr(caught.value),
            caught.value.hint,
            caplog.text,
            repr(session),
            str(vars(session)),
        ]
    assert not [text for text in said for secret in ("wr0ng", lab.password) if secret in text]


def test_a_password_that_changes(lab: LabSite, site: Site, tmp_path: Path) -> None:
    """The password is read anew at each login, so that it can be changed under a running worker."""
    path = tmp_path / "password"
    path.touch(0o600)
    path.write_text(lab.password)
    with open_session("lab", site.model_copy(update={"password_file": path})) as session:
        path.write_text("another")
        assert inventory.list_vms(session)
        lab.client.expire_sessions()
        with pytest.raises(LoginRefused):
            inventory.list_vms(session)
        path.write_text(f"{lab.password}\r\n")
        assert inventory.list_vms(session)


def _backup(session: Session) -> None:
    """Every call that a backup makes."""
    moref = inventory.find_vm(session, "web01").ref.moref
    snapshot.enable_tracking(session, moref)
    made = snapshot.create_snapshot(session, moref, NAME, True, no_beat)
    (disk,) = snapshot.snapshot_disks(session, made)
    assert list(changes.changed_areas(session, moref, made, disk.key, disk.size, changes.ALL, no_beat))
    assert list(changes.changed_areas(session, moref, made, disk.key, disk.size, disk.change_id, no_beat)) == []
    assert [found[1:] for found in snapshot.find_snapshots(session, NAME)] == [(made, NAME)]
    assert snapshot.remove_snapshots(session, moref, NAME, no_beat) == 1


@pytest.mark.parametrize("work", [inventory.list_vms, _backup])
def test_the_session_expires_between_any_two_calls(
    work: Callable[[Session], object], lab: LabSite, site: Site, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in a backup, or between the pages of the inventory, the session ends: the work is done all the same."""
    monkeypatch.setattr("sendense.vsphere.properties.PAGE_OBJECTS", 4)
    with before_request(-1, no_beat) as requests:
        work(session)
    assert len(requests) > 3
    for number in requests:
        with before_request(number, lab.client.expire_sessions):
            work(session)


def test_a_session_that_does_not_last(lab: LabSite, session: Session) -> None:
    """Where every login is lost at once, that is said after the second, and not tried for ever."""

    def act() -> None:
        lab.client.expire_sessions()
        session.content.viewManager.CreateContainerView(session.content.rootFolder, [], True)

    with pytest.raises(SessionLost, match="look around"):
        session.call("look around", act)


def test_a_dropped_connection(lab: LabSite, session: Session) -> None:
    """Reading goes on over a dropped connection; what is not safe to repeat says so, and can be asked again."""
    moref = inventory.find_vm(session, "web01").ref.moref
    lab.client.fail_next("RetrievePropertiesEx", "drop")
    assert inventory.vm_info(session, moref).ref.name == "web01"
    lab.client.fail_next("CreateSnapshot", "drop")
    with pytest.raises(SiteUnreachable, match="connection failed"):
        snapshot.create_snapshot(session, moref, NAME, False, no_beat)
    assert snapshot.create_snapshot(session, moref, NAME, False, no_beat)
    assert snapshot.remove_snapshots(session, moref, NAME, no_beat) == 1


def test_a_connection_that_is_dropped_again(lab: LabSite, session: Session) -> None:
    """A call that drops the connection every time is an error, not a loop."""
    lab.client.fail_next("RetrievePropertiesEx", "drop", times=2)
    with pytest.raises(SiteUnreachable):
        inventory.vm_info(session, "vm-1")


@pytest.mark.parametrize(
    ("fault", "error"),
    [("NoPermission", PermissionMissing), ("HostNotConnected", SiteBusy), ("SystemError", SiteFault)],
)
def test_faults(fault: str, error: type[Exception], lab: LabSite, session: Session) -> None:
    """A fault in any call becomes the error that says whether trying again helps."""
    lab.client.fail_next("RetrievePropertiesEx", fault)
    with pytest.raises(error, match="site lab: list the VMs: "):
        inventory.list_vms(session)


def stop(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until all its threads have: one may be about to answer."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while any(" (stopped)" not in task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_vcenter(lab: LabSite, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCenter that stops is an error within the deadline, on an open connection and on a new one; then it goes on."""
    assert lab.process
    monkeypatch.setattr(connection, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.3)
    stop(lab.process.pid)
    try:
        with pytest.raises(SiteUnreachable, match=r"no answer in 0\.5 s"):
            inventory.vm_info(session, "vm-1")
        with pytest.raises(SiteUnreachable, match=r"did not begin TLS in 0\.3 s"):
            inventory.vm_info(session, "vm-1")
    finally:
        os.kill(lab.process.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert inventory.list_vms(session)


def test_closing_does_not_wait(lab: LabSite, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session at a vCenter that has stopped is closed without an error, soon."""
    assert lab.process
    monkeypatch.setattr("sendense.vsphere.session.LOGOUT_SECONDS", 0.3)
    session = open_session("lab", site)
    stop(lab.process.pid)
    try:
        session.close()
        session.close()
    finally:
        os.kill(lab.process.pid, signal.SIGCONT)


def test_sessions_are_ended(lab: LabSite, site: Site) -> None:
    """Closing logs out: vCenter's sessions are few."""
    before = lab.client.status()["sessions"]
    for _ in range(3):
        with open_session("lab", site):
            pass
    assert lab.client.status()["sessions"] == before


def test_vcenter_is_restarted(lab: LabSite, session: Session) -> None:
    """A vCenter that crashed is an error while it is gone; once it is back, the same session logs in again."""
    assert inventory.list_vms(session)
    lab.kill()
    try:
        with pytest.raises(SiteUnreachable, match="Connection refused"):
            inventory.list_vms(session)
    finally:
        lab.start()
    assert inventory.list_vms(session)
    lab.kill()
    lab.start()
    power.power_on(session, inventory.find_vm(session, "web01").ref.moref, no_beat)


def test_an_unknown_vm(session: Session) -> None:
    """A VM that is not there is an error of its own."""
    with pytest.raises(VmGone, match="there is no VM vm-1"):
        inventory.vm_info(session, "vm-1")
