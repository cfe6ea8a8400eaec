"""
Makes the pictures of docs/flower.md and docs/page.md: jobs over some nodes, and what can go wrong with them.

    deploy/screenshots
"""

import sys
import time
from functools import partial
from pathlib import Path

import psutil
from selenium.webdriver.common.keys import Keys

from sendense.jobs.ledger import Claim
from sendense.units import MiB
from tests.browser import Browser, open_browser
from tests.flower import Show, open_show, wait_for
from tests.page import NODES, Shown, ShownJob, open_shown

NAMES = ("oslo-1", "oslo-2", "bergen-1")

FULL_JOBS, FULL_BATCHES = 8, 24

RAN_SECONDS = 560.0
"""For how long the job of the job page's pictures seems to have run: as long as what it stored might have taken."""

LOOKS = 8
"""How many seconds a job moves before its picture is taken: a rate is not shown before it is known."""

DRAW_SECONDS = 1.0
"""A page's table is filled by a request of its own, and drawn with an animation."""


def shows(browser: Browser, url: str, table: str, *texts: str) -> bool:
    """Whether a page that is loaded anew has a row with all of these texts."""
    browser.open(url)
    time.sleep(DRAW_SECONDS)
    return any(all(any(text in cell for cell in row) for text in texts) for row in browser.rows(table))


def retried_batch(show: Show, browser: Browser, folder: Path) -> None:
    """Some reads fail, and succeed at their second attempt."""
    tasks = f"{show.pages.url}/tasks"
    job = show.job("web01", 40, seconds=0.15)
    wait_for("a few batches", lambda: len(job.ledger.records(job.spec.id)) > 15)
    show.failing.touch()
    wait_for("reads that fail", lambda: len(job.ledger.failures(job.spec.id)) >= 3)
    show.failing.unlink()
    wait_for("the first tries", lambda: shows(browser, tasks, "tasks-table", "RETRY"))
    wait_for("the end", lambda: job.tick() == "copied")
    wait_for("the second try", partial(shows, browser, tasks, "tasks-table", "attempt 2", "SUCCESS"))
    browser.open(f"{tasks}?state=RETRY")
    time.sleep(DRAW_SECONDS)
    browser.picture(folder / "flower-failed.png")
    browser.open(tasks)
    browser.write("#tasks-table_filter input", "attempt")
    time.sleep(DRAW_SECONDS)
    browser.picture(folder / "flower-retried.png")


def stalled_node(show: Show, browser: Browser, folder: Path) -> None:
    """A node stops in the middle of a batch."""
    job = show.job("db01", 24, seconds=1.0)
    wait_for("three batches under way", lambda: len(active(show)) == len(NAMES))
    process = show.fleet.processes["bergen-1"]
    family: list[psutil.Process] = [*process.children(recursive=True), process]
    for each in family:
        each.suspend()
    wait_for(
        "its absence", partial(shows, browser, f"{show.pages.url}/workers", "workers-table", "bergen-1", "Offline")
    )
    browser.picture(folder / "flower-stalled.png")
    wait_for("the end without it", lambda: job.tick() == "copied")
    url = f"{show.pages.url}/tasks?worker=bergen-1&state=STARTED"
    wait_for("its batch", partial(shows, browser, url, "tasks-table", "db01"))
    browser.picture(folder / "flower-stalled-batch.png")
    for each in family:
        each.resume()


def active(show: Show) -> list[str]:
    """The nodes that have a batch under way."""
    found = show.hub.ledger.progress("job-db01")
    return [activity.worker for activity in found.active] if found else []


def full_queue(show: Show, browser: Browser, folder: Path) -> None:
    """More jobs than the nodes can do at once."""
    for number in range(FULL_JOBS):
        show.job(f"app{number:02}", FULL_BATCHES, seconds=2.0)
    show.pages.read("/api/workers?refresh=1")
    wait_for("a full queue", partial(shows, browser, f"{show.pages.url}/broker", "queue-table", "site.local"))
    browser.picture(folder / "flower-queue.png")


def busy_job(shown: Shown) -> tuple[ShownJob, list[Claim]]:
    """A backup in the middle: some batches failed, and these are under way."""
    job = shown.job("web01", 412, 96)
    job.ran_for(RAN_SECONDS)
    job.say("inspect", "choose", "snapshot", "changes", "prepare", "copy")
    job.store(180)
    job.store(30, disk=1)
    claims = [job.claim(batch, NODES[batch % 4], copied=70 * MiB) for batch in job.send(20)[:12]]
    job.fail(claims[1], again=True)
    job.fail(claims[2], again=True)
    for claim in claims[3:6]:
        job.finish(claim)
    job.say("disk 2000: batch 182: read nbd://…: Input/output error [attempt 1 of 6]")
    return job, [claims[0], *claims[6:]]


def job_page(folder: Path) -> None:
    """A job on the job page: in light and dark, and on a phone."""
    with open_shown() as shown, open_browser(1280, 1000) as browser:
        job, claims = busy_job(shown)
        browser.open(f"{shown.url}#/jobs/{job.id}")
        browser.wait_for("the question", lambda: browser.focused == "Token")
        browser.press(shown.token("operator", "operator-1"), Keys.ENTER)
        browser.wait_for("the map", lambda: browser.find(".disk .numbers"))
        moved = 70

        def picture(name: str, scheme: str, width: int) -> None:
            nonlocal moved
            browser.prefer(scheme)
            browser.resize(width, 860)
            for _ in range(LOOKS):
                moved += 2
                for claim in claims:
                    job.move(claim, moved * MiB)
                time.sleep(DRAW_SECONDS)
            browser.picture(folder / name)

        picture("page-job.png", "light", 1280)
        browser.run("document.querySelectorAll('.choice input[value=node]').forEach((each) => each.click())")
        picture("page-job-dark.png", "dark", 1280)
        picture("page-job-narrow.png", "light", 360)


def main() -> None:
    """Write the pictures into the folder that is the only argument."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    job_page(folder)
    with open_show() as show, open_browser(1680, 740) as browser:
        show.fleet.start(*NAMES)
        browser.open(show.pages.url_with_password)
        wait_for("the nodes", lambda: shows(browser, f"{show.pages.url}/workers", "workers-table", NAMES[-1], "Online"))
        retried_batch(show, browser, folder)
        stalled_node(show, browser, folder)
        full_queue(show, browser, folder)


if __name__ == "__main__":
    main()
