"""Take the pictures of a report that are in these pages.

make demo && python docs/report_pictures.py quickstart/report.html
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
SIZES = {
    "report": ({"width": 1280, "height": 860}, "light", "#map"),
    "report_dark": ({"width": 1000, "height": 900}, "dark", "#clusters"),
    "report_phone": ({"width": 390, "height": 844}, "light", "#map"),
}
SHOWN = "report.label[Math.floor(report.n / 3)]"  # a cluster


def main() -> None:
    """Open the report once a size, select a cluster, and save what is seen."""
    parser = argparse.ArgumentParser(description="Pictures of a report.")
    parser.add_argument("report", type=Path)
    report = parser.parse_args().report.absolute()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, (viewport, scheme, part) in SIZES.items():
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            page.goto(report.as_uri())
            page.evaluate(f"select({SHOWN})")
            page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
            page.evaluate(f"document.querySelector('{part}').scrollIntoView()")
            page.wait_for_timeout(500)  # sheets are decoded as they come into view
            page.screenshot(path=HERE / f"{name}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
