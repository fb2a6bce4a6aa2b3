"""Take the picture of a report that README shows: its first screen, in headless Chromium.

    python benchmarks/report_picture.py RESULTS.json docs/images/report.png

It needs `chromium` and `chromedriver`, as the tests of the report do.
"""

import argparse
import base64
import shutil
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from moekit.comparison.report import write_report
from moekit.comparison.results_schema import read_results

WIDTH = 1300


def main() -> None:
    """Write the page of some results, open it, and keep what stands above `--until`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--until", default="trust", help="id of the heading before which the picture ends")
    arguments = parser.parse_args()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(read_results(arguments.results), page)
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}",
        ):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.as_uri())
            drawn = "return [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg.main-svg'))"
            WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(drawn))
            top = "return document.getElementById(arguments[0]).getBoundingClientRect().top + window.scrollY"
            height = browser.execute_script(top, arguments.until) - 28
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            arguments.picture.write_bytes(base64.b64decode(taken["data"]))
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
