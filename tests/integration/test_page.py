"""The job page in a real browser, over a hub whose jobs the test moves: what it shows, to whom, and how it looks."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from sendense.models import Failure
from tests.api import problem
from tests.browser import PATIENCE, Browser, open_browser
from tests.page import NODES, Shown, ShownJob, open_shown

LARGE = 50_000
"""Batches of a disk of 6 TiB."""

WIDTHS = (360, 720, 1280, 2560)

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
"""A name that a VM may have."""

QUIET_SECONDS = 3.0
"""Three looks of a page that is seen."""

FITS = "return document.documentElement.scrollWidth <= innerWidth"

CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
const over = ([r, g, b, a = 1], under) => [r, g, b].map((each, at) => each * a + under[at] * (1 - a));
const light = (colour) => {
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = colour.map((each) => linear(each / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((under, each) => over(each.length < 4 ? [...each, 1] : each, under), [255, 255, 255]);
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const poor = [];
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  if (element.closest('.unseen, .skip, option')) continue;
  const under = ground(element);
  const style = getComputedStyle(element);
  const [one, other] = [light(over(parse(style.color), under)), light(under)].sort((a, b) => b - a);
  const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
  const ratio = (one + 0.05) / (other + 0.05);
  if (ratio < least) poor.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
}
return poor;
"""
"""Texts whose contrast is less than what WCAG 2.2 has for AA (1.4.3)."""


BAR = """
const [moves] = arguments;
return import(`${location.origin}/page/progress.js`).then(({ Bar }) => {
  const bar = new Bar("test");
  const counts = { batches: 9, batches_done: 0, done: 0, data: 64 * 2 ** 20, active: [] };
  performance.now = () => moves[0][0] * 1000;
  const said = [];
  for (; moves.length; moves.shift()) {
    bar.update({ ...counts, copied: moves[0][1] }, { live: true });
    said.push(bar.words.textContent.match(/, (.*\\/s), /)?.[1] ?? "");
  }
  delete performance.now;
  return said;
});
"""
"""The rates that a bar shows, each after so many seconds, when so many bytes were copied."""


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    """A hub without work."""
    with open_shown() as shown:
        yield shown


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One window for all tests of this module."""
    with open_browser(1280, 900) as browser:
        yield browser


@pytest.fixture(autouse=True)
def _calm(browser: Browser) -> Iterator[None]:
    """The page has its usual size and scheme before each test, and complained of nothing after it."""
    browser.resize(1280)
    browser.prefer("light")
    yield
    assert browser.faults() == []


def sign_in(browser: Browser, shown: Shown, token: str, place: str = "#/") -> None:
    """Open the page as somebody who was never there, and show a token."""
    browser.open(f"{shown.url}healthz")  # leaves the page, if this is it
    browser.run("sessionStorage.clear()")
    browser.open(f"{shown.url}{place}")
    browser.wait_for("the question", lambda: browser.find("form label"))
    browser.write("input[type=password]", token)
    browser.press(Keys.ENTER)
    browser.wait_for("the page", lambda: browser.find("#views"))


@pytest.fixture
def open_job(browser: Browser, shown: Shown) -> Callable[[ShownJob], None]:
    """Opens an operator's page at a job."""

    def open_at(job: ShownJob) -> None:
        sign_in(browser, shown, shown.token(), f"#/jobs/{job.id}")
        browser.wait_for("the map", lambda: browser.find(".disk .numbers"))

    return open_at


def states(browser: Browser) -> Counter[str]:
    """The legend of the first map: batches by state, none of those that it does not name."""
    return Counter(legend(browser, "States"))


def legend(browser: Browser, label: str) -> dict[str, int]:
    """Names and counts of a legend; nothing before it is drawn."""
    script = (
        "const drawn = document.querySelector(`.legend[aria-label=${arguments[0]}]`);"
        "return [...drawn?.querySelectorAll('button') ?? []]"
        ".map(each => [each.children[1].textContent, each.children[2].textContent])"
    )
    return {name: int(count.replace(",", "")) for name, count in browser.run(script, label)}


def drawn(browser: Browser) -> int:
    """Cells that were drawn so far on the first map."""
    return int(browser.run("return document.querySelector('canvas').dataset.drawn"))


def has_drawn(browser: Browser, cells: int) -> bool:
    """Whether so many were drawn by now."""
    return drawn(browser) >= cells


def has_done(browser: Browser, batches: int) -> bool:
    """Whether the first map has exactly so many batches that are done."""
    return states(browser)["done"] == batches


def has_colour(browser: Browser, batch: int, name: str) -> bool:
    """Whether a batch's cell has one of the page's own colours."""
    return pixel(browser, batch) == colour(browser, name)


def pixel(browser: Browser, batch: int) -> list[int]:
    """The colour at the lower left of a batch's cell, where no mark is, of cells of 24 pixels."""
    script = (
        "const canvas = document.querySelector('canvas'), columns = Math.floor(canvas.clientWidth / 24);"
        "const [x, y] = [arguments[0] % columns * 24 + 2, Math.floor(arguments[0] / columns) * 24 + 10];"
        "return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"
    )
    found: list[int] = browser.run(script, batch)
    return found


def colour(browser: Browser, name: str) -> list[int]:
    """A colour of the page's own, by its name."""
    text: str = browser.run("return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])", name)
    return [int(text.strip()[at : at + 2], 16) for at in (1, 3, 5)]


def test_files_are_for_everybody_and_say_what_browsers_may_do(shown: Shown) -> None:
    """The page needs no token, runs nothing but files of the hub, and is asked for again only when it changed."""
    with httpx.Client(base_url=shown.url, timeout=PATIENCE) as client:
        page = client.get("/")
        assert page.headers["cache-control"] == "no-store"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert not re.findall(r"<script(?![^>]*src)|\sstyle=|\son\w+=|https?://", page.text)
        for name in {"page.css", "main.js", "icon.svg", *re.findall(r'page/([\w.]+)"', page.text)}:
            found = client.get(f"/page/{name}").raise_for_status()
            assert found.headers["content-security-policy"] == policy
            assert client.get(f"/page/{name}", headers={"If-None-Match": found.headers["etag"]}).status_code == 304
        for path in ("/page/index.html", "/page/none.js", "/page/..%2fapp.py", "/page/", "/page"):
            problem(client.get(path), 404)
        problem(client.post("/"), 405)


def test_a_token_is_asked_for(shown: Shown, browser: Browser) -> None:
    """A wrong token is refused in words; a right one is kept for the tab alone, until it is revoked."""
    browser.open(shown.url)
    browser.wait_for("the question", lambda: browser.focused == "Token")
    browser.press("sendense_none", Keys.ENTER)
    browser.wait_for("the refusal", lambda: "not known" in browser.find("[role=alert]"))
    browser.write("input[type=password]", shown.token("operator", "short"))
    browser.press(Keys.ENTER)
    browser.wait_for("the jobs", lambda: "short, operator" in browser.text)
    assert browser.run("return localStorage.length + document.cookie.length + location.search.length") == 0
    browser.open(f"{shown.url}#/nodes")
    browser.wait_for("the nodes, as the token is known", lambda: browser.find("h1") == "Nodes")
    shown.revoke("short")
    browser.wait_for("the question again", lambda: browser.find("h1") == "Sign in")
    assert "revoked" in browser.find("[role=alert]")
    assert browser.run("return sessionStorage.length") == 0


def test_a_reader_only_looks(shown: Shown, browser: Browser) -> None:
    """With a reader's token everything is shown, and nothing that changes something."""
    job = shown.job("web01", 12)
    job.store(6)
    sign_in(browser, shown, shown.token("reader"))
    browser.wait_for("the jobs", lambda: "backup of web01" in browser.text)
    assert not browser.find(".title button")
    assert "Times are those of this browser: " in browser.text
    browser.open(f"{shown.url}#/jobs/{job.id}")
    browser.wait_for("the map", lambda: browser.find(".disk .numbers") and states(browser)["done"] == 6)
    assert not browser.find(".actions button")


def test_a_map_fills(shown: Shown, browser: Browser, open_job: Callable[[ShownJob], None]) -> None:
    """Each batch is a cell with the colour of its state, or of its node, and in words: as the job goes on."""
    job = shown.job("web02", 60)
    job.store(8, ("oslo-1", "oslo-2"))
    open_job(job)
    browser.wait_for("eight batches", lambda: states(browser)["done"] == 8)
    assert legend(browser, "Nodes") == {"oslo-1": 4, "oslo-2": 4}
    batches = job.send(6)
    claims = [job.claim(batch, "bergen-1", copied=2**20) for batch in batches[:4]]
    job.fail(claims[0], again=True)
    job.fail(claims[1], again=False)
    expected = {"to do": 46, "sent to a node": 2, "running": 2, "waiting for its retry": 1, "done": 8, "given up": 1}
    browser.wait_for("all states", lambda: states(browser) == expected)
    parts = "46 to do, 2 sent to a node, 2 running, 1 waiting for its retry, 8 done, 1 given up"
    assert f"60 batches: {parts}." in browser.text
    places = {0: "done", batches[0]: "waiting", batches[1]: "failed", batches[2]: "running", batches[4]: "sent"}
    for batch, name in places.items():
        browser.wait_for(name, partial(has_colour, browser, batch, f"--cell-{name}"))
    browser.run("document.querySelector('.choice input[value=node]').click()")
    browser.wait_for("the second node's colour", partial(has_colour, browser, 1, "--node-2"))
    browser.wait_for("the third's", partial(has_colour, browser, batches[2], "--node-3"))
    browser.run("document.querySelector('canvas').focus()")
    browser.press(Keys.HOME, *[Keys.ARROW_RIGHT] * batches[2])
    assert browser.find(".detail") == f"Batch {batches[2] + 1}: running, by bergen-1, 1.00 MiB so far"
    job.finish(claims[2])
    browser.wait_for("its end", lambda: browser.find(".detail") == f"Batch {batches[2] + 1}: done, by bergen-1")


def test_a_rate_rests_on_some_seconds(shown: Shown, browser: Browser) -> None:
    """What a limit lets through comes in bursts: no rate is shown before it is the mean of several of them."""
    browser.open(f"{shown.url}#/")
    burst = 2**20
    bursts = [[second, second // 2 * burst] for second in range(13)]
    assert browser.run(BAR, bursts)[:5] == [""] * 5
    assert browser.run(BAR, bursts)[6::6] == ["512 KiB/s"] * 2
    still = [*bursts[:7], *([6 + second, 3 * burst] for second in range(1, 13))]
    assert browser.run(BAR, still)[-1] == "0 B/s"
    seldom = [[0, 0], [30, 30 * burst], [60, 60 * burst], [61, 61 * burst]]  # as of a tab that was hidden
    assert browser.run(BAR, seldom) == ["", *["1.00 MiB/s"] * 3]
    assert browser.run(BAR, [*bursts[:7], [7, 0], [8, burst]])[-3:] == ["512 KiB/s", "", ""]


def test_a_job_ends(shown: Shown, browser: Browser, open_job: Callable[[ShownJob], None]) -> None:
    """An error is shown with its hint; the map of a job that succeeded is complete, and gone for who comes later."""
    job = shown.job("web03", 9)
    job.say("snapshot made")
    job.store(4)
    open_job(job)
    browser.wait_for("the history", lambda: "snapshot made" in browser.text)
    shown.hub.ledger.delete(job.copy())
    job.end("succeeded")
    browser.wait_for("the whole", lambda: states(browser)["done"] == 9)
    assert "restore point" in browser.find(".facts")
    browser.run("location.reload()")
    browser.wait_for("the note", lambda: "It has no map any more" in browser.text)
    failed = shown.job("web04", 9)
    failed.store(4)
    failed.end("failed", Failure(error="ReadFailed", message="disk 2000: no route", hint="Look at the switch."))
    browser.open(f"{shown.url}#/jobs/{failed.id}")
    browser.wait_for(
        "the error", lambda: browser.find(".trouble").split("\n\n") == ["disk 2000: no route", "Look at the switch."]
    )
    browser.wait_for("the way on", lambda: browser.find(".actions button") == "Resume")
    assert "restore point" not in browser.find(".facts")
    unread = shown.job("web07", 0)
    browser.open(f"{shown.url}#/jobs/{unread.id}")
    browser.wait_for("the disk", lambda: browser.find(".disk h2"))
    assert not browser.run("return [...document.querySelectorAll('progress')].some(each => each.checkVisibility())")


def test_names_are_text(shown: Shown, browser: Browser, open_job: Callable[[ShownJob], None]) -> None:
    """What looks like HTML in a VM's name, or in an error, is shown as it is, and does nothing."""
    job = shown.job(HOSTILE, 4)
    job.say(f"disk 2000: {HOSTILE}")
    open_job(job)
    browser.wait_for("its history", lambda: HOSTILE in browser.find(".events"))
    assert browser.find("h1") == f"backup of {HOSTILE}"
    browser.open(f"{shown.url}#/")
    browser.wait_for("its line", lambda: f"backup of {HOSTILE}" in browser.find(".jobs"))
    assert browser.run("return document.querySelectorAll('main img').length") == 0
    assert browser.run("return document.title") == "Jobs · Sendense"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_and_scheme(shown: Shown, browser: Browser, scheme: str) -> None:
    """From a phone to a wall, in light and dark: nothing is wider than the page, all can be read (WCAG AA)."""
    job = shown.job(f"a-vm-with-a-very-long-name-that-nobody-would-type-{scheme}", 700, 90)
    job.store(200)
    claims = [job.claim(batch, NODES[batch % len(NODES)]) for batch in job.send(8)]
    job.fail(claims[0], again=False)
    job.say("disk 2000: read nbd://source.example:10809/a/very/long/path/of/an/export: Input/output error")
    ended = shown.job("db01", 3)
    ended.end("failed", Failure(error="ReadFailed", message="disk 2000: no route to the host", hint="Look at it."))
    browser.prefer(scheme)
    sign_in(browser, shown, shown.token())
    assert browser.run(CONTRAST.replace("4.5", "21")) != []
    views: dict[str, Callable[[], Any]] = {
        "": lambda: browser.find(".jobs li"),
        "#/nodes": lambda: "bergen-1" in browser.text,
        "#/points": lambda: browser.find("h1") == "Restore points",
        f"#/jobs/{job.id}": lambda: browser.find(".disk .numbers"),
        f"#/jobs/{ended.id}": lambda: browser.find(".trouble"),
    }
    for place, is_there in views.items():
        shown.announce(*NODES, rate=1e8, active=2, verdict="no-greeting")
        browser.open(f"{shown.url}{place}")
        browser.wait_for(place, is_there)
        for width in WIDTHS:
            browser.resize(width)
            browser.wait_for(f"{place} in {width} pixels", lambda: browser.run(FITS))
        assert browser.run(CONTRAST) == [], place
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 600) is (scheme == "light")


def test_a_large_disk(shown: Shown, browser: Browser, open_job: Callable[[ShownJob], None]) -> None:
    """Of 50 000 batches only those are drawn that changed, however many there are."""
    job = shown.job("fileserver", LARGE)
    job.store(1000)
    open_job(job)
    browser.wait_for("all cells", partial(has_drawn, browser, LARGE))
    browser.wait_for("rest", lambda: states(browser) == {**dict.fromkeys(states(browser), 0), **_of(LARGE, 1000)})
    for _ in range(3):
        before, done = drawn(browser), states(browser)["done"]
        job.store(100)
        browser.wait_for("a hundred more", partial(has_done, browser, done + 100))
        browser.wait_for("their cells", partial(has_drawn, browser, before + 1))
        # A look in the middle of it finds some of them sent, or running, and draws those once more.
        assert drawn(browser) - before <= 400
    before = drawn(browser)
    time.sleep(QUIET_SECONDS)
    assert drawn(browser) == before


def _of(batches: int, done: int) -> dict[str, int]:
    return {"to do": batches - done, "done": done}


def test_the_hub_is_away(shown: Shown, browser: Browser) -> None:
    """What the page shows stays while the hub is away; it says so, and goes on by itself."""
    job = shown.job("web05", 12)
    sign_in(browser, shown, shown.token())
    browser.wait_for("the job", lambda: "backup of web05" in browser.text)
    shown.stop()
    browser.wait_for("the notice", lambda: "The hub does not answer." in browser.find("#notice"))
    assert "backup of web05" in browser.text
    job.store(12)
    shown.start()
    browser.wait_for("its return", lambda: not browser.find("#notice") and "batch 12/12" in browser.text)


def test_a_page_that_nobody_sees_asks_nothing(shown: Shown, browser: Browser) -> None:
    """In a hidden tab it rests, and it is up to date at once when it is seen again."""
    job = shown.job("web06", 12)
    sign_in(browser, shown, shown.token(), f"#/jobs/{job.id}")
    browser.wait_for("the map", lambda: browser.find(".disk .numbers"))
    with browser.elsewhere():
        time.sleep(1.0)  # for a look that was under way
        before = shown.requests()
        assert before
        job.store(5)
        time.sleep(QUIET_SECONDS)
        assert shown.requests() == before
    browser.wait_for("what happened meanwhile", lambda: states(browser)["done"] == 5)
