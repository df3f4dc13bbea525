"""Size of a report, and its loading time relative to bare pages with the same pictures.

    python -m benchmarks.report                    # 10,000 synthetic images, 500 clusters
    python -m benchmarks.report --photos FOLDER    # your photos, repeated if needed

The bare pages hold only the thumbnails of the report. One has the same sheets, which is the least
that a browser needs for these bytes. The other has one <img> per image, like a simple gallery. All
pages are opened in turns in headless Chromium. A page counts as open when its pictures are decoded
and it has been painted. The script prints ratios of medians.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.cluster.hierarchy import linkage
from scipy.ndimage import gaussian_filter

from evaluation import Projection, write_report
from evaluation.report.images import Thumbnails, make_thumbnails

PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# Decode all pictures: those of the bare pages, and all sheets of the report, visible or not.
PICTURES = """typeof report === "undefined" ? Array.from(document.images)
    : report.sheets.map(sheet => Object.assign(new Image(), { src: sheet.url }))"""
OPEN = f"Promise.all(({PICTURES}).map(picture => picture.decode())).then(() => {PAINTED})"


def made_up(n: int) -> list[np.ndarray]:
    """Return synthetic pictures with details like photos: noise at several scales."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(n):
        noise = generator.normal(size=(96, 128, 3))
        image = np.sum([s * gaussian_filter(noise, (s, s, 0)) for s in (1, 4, 16)], axis=0)
        image = (image - image.min()) / np.ptp(image)
        images.append((image * 255).astype(np.uint8))
    return images


def photos(folder: Path, n: int) -> list[Any]:
    """Return ``n`` photos of a folder, repeated if there are fewer."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    opened = []
    for path in files[:n]:
        with Image.open(path) as image:
            image.draft("RGB", (160, 160))
            opened.append(image.convert("RGB"))
    return [opened[i % len(opened)] for i in range(n)]


def bare_pages(thumbnails: Thumbnails, folder: Path) -> dict[str, Path]:
    """Return the bare pages: one with the sheets, one with an <img> per tile."""
    sheets = [f'<img src="data:image/webp;base64,{sheet}">' for sheet in thumbnails.sheets]
    tiles = []
    for place in range(len(thumbnails.widths)):
        number, within = divmod(place, thumbnails.per_sheet)
        if within == 0:
            encoded = base64.b64decode(thumbnails.sheets[number])
            sheet = Image.open(io.BytesIO(encoded)).convert("RGB")
        x, y = (each * thumbnails.tile for each in divmod(within, thumbnails.columns)[::-1])
        box = x, y, x + int(thumbnails.widths[place]), y + int(thumbnails.heights[place])
        file = io.BytesIO()
        sheet.crop(box).save(file, "WEBP", quality=75, method=2)
        text = base64.b64encode(file.getvalue()).decode()
        tiles.append(f'<img src="data:image/webp;base64,{text}">')
    pages = {}
    for name, images in (("sheets", sheets), ("an <img> each", tiles)):
        pages[name] = folder / f"bare_{len(pages)}.html"
        pages[name].write_text("<!doctype html><meta charset=utf-8>" + "\n".join(images))
    return pages


def seconds_to_open(browser: Any, path: Path) -> float:
    """Return the seconds from the start of navigation to the first complete painting."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri(), wait_until="commit", timeout=120_000)
    page.wait_for_load_state("load", timeout=120_000)
    page.evaluate(OPEN)
    taken = page.evaluate("performance.now()") / 1000
    page.close()
    return taken


def main() -> None:
    """Write the report and the bare pages, open them in turns, and print ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--photos", type=Path, help="folder of photos")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    n, n_clusters = arguments.images, arguments.clusters
    images = photos(arguments.photos, n) if arguments.photos else made_up(n)
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(n_clusters, 64))
    labels = generator.integers(0, n_clusters, n)
    embeddings = centers[labels] + generator.normal(size=(n, 64))
    coordinates = embeddings[:, :2].astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.html")
        summary = write_report(
            report,
            embeddings=embeddings,
            labels=labels,
            images=images,
            names=[f"holidays/2019/IMG_{i:05d}.jpg" for i in range(n)],
            linkage=linkage(centers, "ward"),
            projection=Projection(coordinates, np.arange(n), "tsne", "none"),
        )
        print(f"{n:,} images in {n_clusters} clusters: {summary.n_bytes / 1e6:.1f} MB")
        pages = {
            "report": report,
            **bare_pages(make_thumbnails(images, np.arange(n)), Path(folder)),
        }
        times: dict[str, list[float]] = {name: [] for name in pages}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            for repeat in range(arguments.repeats + 1):
                for name, path in pages.items():
                    taken = seconds_to_open(browser, path)
                    if repeat:  # the first opening warms the caches
                        times[name].append(taken)
            browser.close()
    opened = statistics.median(times["report"])
    for name in list(pages)[1:]:
        ratios = [a / b for a, b in zip(times["report"], times[name], strict=True)]
        print(
            f"opening, as times of a bare page with {name}: "
            f"{opened / statistics.median(times[name]):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
