"""A headless Chromium, driven as a user would: Debian's, with its own driver."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.servers import short_folder

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"

PATIENCE = 60.0
"""Seconds for what a page shows within one."""


class _Driver(Service):
    """Ends with whoever started it, also when that is killed."""

    def command_line_args(self) -> list[str]:
        """What follows the program's name."""
        return ["--pdeathsig", "KILL", DRIVER, *super().command_line_args()]


class Browser:
    """One window."""

    def __init__(self, chrome: Chrome) -> None:
        self._chrome = chrome

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is loaded."""
        self._chrome.get(url)

    @property
    def text(self) -> str:
        """What is to be read on the page now."""
        return self._chrome.find_element(By.TAG_NAME, "body").text

    @property
    def source(self) -> str:
        """All of the page as it is now, also what is not to be seen."""
        return self._chrome.page_source

    def rows(self, table: str) -> list[list[str]]:
        """The texts of a table's cells, without its head; `table` is its id."""
        script = (
            "return [...document.querySelectorAll(arguments[0] + ' tbody tr')]"
            ".map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        found: list[list[str]] = self._chrome.execute_script(script, f"#{table}")
        return found

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """Wait until the page shows something."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE:.0f} s: {self.text}"
            time.sleep(0.1)

    def write(self, selector: str, text: str) -> None:
        """Type into the first element of a CSS selector, instead of what is there."""
        element = self._chrome.find_element(By.CSS_SELECTOR, selector)
        element.clear()
        element.send_keys(text)

    def picture(self, path: Path) -> None:
        """Save what the window shows, as PNG."""
        assert self._chrome.save_screenshot(str(path))


@contextmanager
def open_browser(width: int = 1400, height: int = 900, *, trusting: bool = False) -> Iterator[Browser]:
    """
    A browser that knows nothing of earlier ones, until the block ends; its window in pixels.

    trusting: it takes any certificate, as a user does who was told to.
    """
    with short_folder() as folder:
        options = ChromeOptions()
        options.binary_location = CHROMIUM
        options.accept_insecure_certs = trusting
        for argument in (
            *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--lang=en"),
            *("--remote-debugging-pipe", f"--window-size={width},{height}", f"--user-data-dir={folder}"),
        ):
            options.add_argument(argument)
        chrome = Chrome(options, _Driver("/usr/bin/setpriv", log_output=str(folder / "driver.log")))
        try:
            chrome.set_page_load_timeout(PATIENCE)
            yield Browser(chrome)
        finally:
            chrome.quit()
