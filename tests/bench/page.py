"""
How smoothly the job page follows a disk of 50 000 batches (6 TiB); prints one JSON object.

    python -m tests.bench.page [BATCHES]

The ledger's own scripts store batches, far more of them a second than any site could; a headless Chromium shows it.
Times of frames are those between two calls of requestAnimationFrame, long tasks what PerformanceObserver calls so (over
50 ms): both in milliseconds, once while the whole map is drawn, once while it is followed.
"""

import json
import os
import sys
import time
from typing import Any

import httpx
from selenium.webdriver.common.keys import Keys

from tests.browser import Browser, open_browser
from tests.page import Shown, ShownJob, open_shown

DEFAULT_BATCHES = 50_000

FOLLOW_SECONDS = 20.0

STORED_AT_ONCE, REST_SECONDS = 50, 0.2
"""Some 200 batches a second: 25 GiB/s."""

WATCH = """
window.frames_ = []; window.tasks_ = [];
let before = performance.now();
const frame = (now) => { frames_.push(now - before); before = now; requestAnimationFrame(frame); };
requestAnimationFrame(frame);
new PerformanceObserver((list) => tasks_.push(...list.getEntries().map((each) => each.duration)))
  .observe({ type: 'longtask' });
"""

TAKE = "const found = [frames_, tasks_]; window.frames_ = []; window.tasks_ = []; return found"


def watched(browser: Browser) -> dict[str, float]:
    """What there was to see since the last call."""
    frames, tasks = browser.run(TAKE)
    slow = sorted(frames)
    return {
        "longest_frame": round(slow[-1], 1),
        "frames_99_percent": round(slow[len(slow) * 99 // 100], 1),
        "longest_task": round(max(tasks, default=0.0), 1),
    }


def wait_for_cells(browser: Browser, cells: int) -> None:
    """Wait until so many cells were drawn."""
    script = "return Number(document.querySelector('canvas')?.dataset.drawn ?? 0)"
    browser.wait_for(f"{cells} cells", lambda: browser.run(script) >= cells)


def answers(shown: Shown, job: ShownJob) -> dict[str, Any]:
    """Bytes and milliseconds of the map's first answer, and of one when nothing happened."""
    with shown.client("reader") as client:
        first = client.get(f"jobs/{job.id}/map").raise_for_status()
        after = {"after": first.json()["cursor"]}
        idle = client.get(f"jobs/{job.id}/map", params=after).raise_for_status()
    return {"first": _cost(first), "idle": _cost(idle)}


def _cost(answer: httpx.Response) -> dict[str, float]:
    return {"bytes": len(answer.content), "milliseconds": round(answer.elapsed.total_seconds() * 1000, 1)}


def measure(batches: int) -> dict[str, Any]:
    """The page at a job of which half is stored, and more every moment."""
    with open_shown() as shown, open_browser(1280, 900) as browser:
        job = shown.job("fileserver", batches)
        job.store(batches // 2)
        browser.open(shown.url)
        browser.write("input[type=password]", shown.token())
        browser.press(Keys.ENTER)
        browser.wait_for("the job", lambda: "fileserver" in browser.text)
        browser.run(WATCH)
        browser.run("location.hash = arguments[0]", f"#/jobs/{job.id}")
        wait_for_cells(browser, batches)
        opening = watched(browser)
        until, stored = time.monotonic() + FOLLOW_SECONDS, 0
        while time.monotonic() < until and stored < batches // 4:
            stored += len(job.store(STORED_AT_ONCE))
            time.sleep(REST_SECONDS)
        following = watched(browser)
        return {
            "batches": batches,
            "answers": answers(shown, job),
            "opening_milliseconds": opening,
            "stored_a_second": round(stored / FOLLOW_SECONDS),
            "following_milliseconds": following,
        }


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith("SENDENSE_")]:
        del os.environ[name]
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_BATCHES)))
