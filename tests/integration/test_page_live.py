"""The job page over a real hub and a simulated site: a backup from its start to its restore point, by keyboard."""

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys

from tests.api import Api, open_api
from tests.backup import Backups
from tests.browser import Browser, open_browser
from tests.site import LabSite, MiB, open_site

VM = "web01"

SLOW = MiB // 2
"""Bytes a second at which a process reads a disk: its backup lasts longer than what the test does to it."""

CANCELLED = "\N{EN DASH}\ncancelled"

MOST_TABS = 60
"""Whoever presses Tab so often has been everywhere."""


SHOWS_FOCUS = """
const it = document.activeElement;
return it === document.body || getComputedStyle(it).outlineStyle !== 'none';
"""
"""Behind the last element the focus is the browser's own, until the next one."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Small VMs."""
    with open_site(vms=1, disks=1, disk_size=64 * MiB) as site:
        yield site


@pytest.fixture
def api(backups: Backups) -> Iterator[Api]:
    """The API of the module's hub, with a chain of two restore points."""
    backups.backup(VM)
    backups.backup(VM)
    with open_api(backups) as api:
        yield api


def tab_to(browser: Browser, text: str) -> None:
    """Go on with the Tab key to what is called so; whatever has the focus on the way there shows it."""
    passed = []
    for _ in range(MOST_TABS):
        browser.press(Keys.TAB)
        passed.append(browser.focused)
        assert browser.run(SHOWS_FOCUS), passed
        if passed[-1].startswith(text):
            return
    raise AssertionError(f"{text} is not among {passed}")


def choose(browser: Browser, text: str, *keys: str) -> None:
    """Go to a button and press it."""
    tab_to(browser, text)
    browser.press(*(keys or (Keys.ENTER,)))


@pytest.mark.timeout(300)
def test_by_keyboard_alone(api: Api, backups: Backups, site: LabSite) -> None:
    """Sign in, start a backup, pause it, let it go on, cancel it, resume it, and see its restore point."""
    site.client.set(VM, read_rate=SLOW)
    with open_browser(1280, 900) as browser:
        browser.open(f"{api.url}/")
        browser.wait_for("the question", lambda: browser.focused == "Token")
        browser.press(api.token(), Keys.ENTER)
        browser.wait_for("the jobs", lambda: f"backup of {VM}" in browser.text)
        choose(browser, "Back up a VM")
        browser.wait_for("the VMs", lambda: VM in browser.focused)
        browser.press(VM)
        tab_to(browser, "Mode")
        browser.press("Full")
        choose(browser, "Start the backup")
        browser.wait_for("the job", lambda: browser.find("h1") == f"backup of {VM}")
        browser.wait_for("its copying", lambda: browser.find(".chip") == "▸\ncopy" and browser.find(".map"))

        choose(browser, "Pause")
        browser.wait_for("its rest", lambda: browser.find(".chip") == "‖\npaused")
        browser.wait_for("the way on", lambda: browser.focused == "Resume")
        browser.press(Keys.ENTER)
        browser.wait_for("its going on", lambda: browser.find(".chip") == "▸\ncopy")

        choose(browser, "Cancel")
        browser.wait_for("the question whether that is meant", lambda: browser.focused == "Let it run")
        browser.press(Keys.ESCAPE)
        browser.wait_for("the focus where it was", lambda: browser.focused == "Cancel")
        browser.press(Keys.ENTER)
        choose(browser, "Cancel the job")
        browser.wait_for("its end", lambda: browser.find(".chip") == CANCELLED)

        site.client.set(VM, read_rate=0)
        choose(browser, "Resume")
        browser.wait_for("its success", lambda: browser.find(".chip") == "✓\nsucceeded")
        browser.wait_for("word of it", lambda: "succeeded" in browser.run("return said.textContent"))
        choose(browser, "Restore points")
        browser.wait_for("its point", lambda: len(_modes(browser)) == 3)
        assert _modes(browser) == ["full", "incremental", "full"]
        assert _linked(browser) == [True, False, False]
        assert browser.faults() == []


def _modes(browser: Browser) -> list[str]:
    found: list[str] = browser.run("return [...document.querySelectorAll('.points .mode')].map(each => each.innerText)")
    return found


def _linked(browser: Browser) -> list[bool]:
    """Of each restore point whether a line goes from it to the next one."""
    script = (
        "return [...document.querySelectorAll('.points .knot')]"
        ".map(each => getComputedStyle(each, '::before').display !== 'none')"
    )
    found: list[bool] = browser.run(script)
    return found


def test_a_refusal_is_shown_with_its_hint(api: Api, backups: Backups, site: LabSite) -> None:
    """What the hub does not do, it says in the words of the command, in the dialog that asked for it."""
    site.client.set(VM, read_rate=SLOW)
    with open_browser(1280, 900) as browser, api.client(api.token()) as client:
        order = {"vm": VM, "mode": "full"}
        job = client.post("/api/v1/backups", json=order).raise_for_status().json()["id"]
        browser.open(f"{api.url}/")
        browser.write("input[type=password]", api.token())
        browser.press(Keys.ENTER)
        browser.wait_for("the job", lambda: job in browser.text)
        choose(browser, "Back up a VM")
        browser.wait_for("the VMs", lambda: VM in browser.focused)
        browser.press(VM)
        choose(browser, "Start the backup")
        browser.wait_for("the refusal", lambda: f"job {job} is at work on it" in browser.find("dialog [role=alert]"))
        assert f"sendense jobs cancel {job}" in browser.find("dialog [role=alert]")
        client.post(f"/api/v1/jobs/{job}/cancel").raise_for_status()
        browser.press(Keys.ESCAPE)
        browser.wait_for("its end", lambda: CANCELLED in browser.find(".jobs li"))
        site.client.set(VM, read_rate=0)
