"""Pages in a real browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One headless Chromium for all tests of a file."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        message = "chromium and chromedriver are needed to open the report"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def open_page(browser: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Open a page by name at a width (px), in light or dark, and wait until its charts are drawn.

    The name stands for one page in the whole file: `html` gives its text when it is opened first.
    """
    folder = tmp_path_factory.mktemp("pages")
    written: dict[str, Path] = {}

    def show(name: str, html: Callable[[], str], width: int = 1280, scheme: str = "light") -> None:
        if name not in written:
            written[name] = folder / f"{name}.html"
            written[name].write_text(html(), encoding="utf-8")
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what earlier pages left there
        browser.get(written[name].as_uri())
        drawn = "return [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg.main-svg'))"
        WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(drawn))

    return show
