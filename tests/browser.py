"""A headless Chromium, driven as a user would: Debian's, with its own driver."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.common.exceptions import JavascriptException, NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.backup import patiently
from tests.servers import short_folder

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"

PATIENCE = 60.0
"""Seconds for what a page shows within one."""

NOT_DRAWN = (JavascriptException, NoSuchElementException, StaleElementReferenceException)
"""What a look at a page ends with while that is being drawn."""


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
        shown = patiently(condition, PATIENCE, 0.1, (LookupError, *NOT_DRAWN))
        assert shown, f"{what} did not come about within {PATIENCE:.0f} s: {self.text}"

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns; it has the arguments in `arguments`."""
        return self._chrome.execute_script(script, *arguments)

    def find(self, selector: str) -> str:
        """The text of the first element of a CSS selector that is to be seen; empty when there is none."""
        script = (
            "const seen = [...document.querySelectorAll(arguments[0])].find(each => each.checkVisibility());"
            "return seen ? seen.innerText : ''"
        )
        found: str = self._chrome.execute_script(script, selector)
        return found

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        for key in keys:
            ActionChains(self._chrome).send_keys(key).perform()

    @property
    def focused(self) -> str:
        """The text of what has the focus: its label, where it has one."""
        script = (
            "const it = document.activeElement;"
            "return it.ariaLabel || (it.labels && it.labels[0] ? it.labels[0].innerText : it.innerText).trim()"
        )
        found: str = self._chrome.execute_script(script)
        return found

    def resize(self, width: int, height: int = 900) -> None:
        """Have the page so many pixels wide and high."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """Have the user prefer a scheme: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Look at another tab until the block ends."""
        here = self._chrome.current_window_handle
        self._chrome.switch_to.new_window("tab")
        try:
            yield
        finally:
            self._chrome.close()
            self._chrome.switch_to.window(here)

    def faults(self) -> list[str]:
        """Errors on the page since the last call, but for answers of the hub that are no success."""
        lines: list[dict[str, str]] = self._chrome.get_log("browser")  # type: ignore[no-untyped-call]
        return [line["message"] for line in lines if line["level"] == "SEVERE" and line["source"] != "network"]

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
