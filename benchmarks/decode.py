"""Speed of decoding large JPEGs at the size that crops need, and of indexing a folder.

    python -m benchmarks.decode

The first part decodes synthetic photos of 12 megapixels, made as in benchmarks.views. It compares
``ItemImages.load_one``, at the sizes for crops of 224 pixels and for a fit of 2,000 photos, with
Pillow's ``Image.open(path).convert("RGB")`` as an array. The second part compares ``list_images``
with a bare ``os.walk``, on 100,000 small files in 100 folders. All variants run in turns. The
script prints the median ratio over the turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.views import RECIPE, write_photos
from sklearn_excb import ExCBEstimator
from sklearn_excb.data.folders import list_images
from sklearn_excb.data.open_source import open_source
from sklearn_excb.data.sources import ItemImages
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.training.build import view_recipe
from sklearn_excb.views.multicrop import ViewRecipe


def ratios(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return the time of each variant relative to the first, in turns; the first turn warms up."""
    turns = []
    for _ in range(repeats + 1):
        seconds = []
        for run in runs.values():
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        turns.append(seconds)
    return {
        name: statistics.median(turn[i] / turn[0] for turn in turns[1:])
        for i, name in enumerate(runs)
    }


def decoding(folder: Path, repeats: int) -> None:
    """Print the speed relative to Pillow's plain decoding."""
    paths = write_photos(folder, 4, 3000, 4000)
    source = open_source(paths)
    assert isinstance(source, ItemImages)
    facts = Facts(2_000, "images", (3000, 4000), 3)
    settings = resolve(ExCBEstimator().get_params(), facts, has_batch_norm=True)
    small = view_recipe(source, settings)
    assert isinstance(small, ViewRecipe)

    def plain() -> None:
        for path in paths:
            np.asarray(Image.open(path).convert("RGB"))

    def at_least(side: int) -> Callable[[], None]:
        def run() -> None:
            for index in range(len(paths)):
                source.load_one(index, side)

        return run

    runs = {
        "Pillow": plain,
        "whole": at_least(0),
        f"at least {RECIPE.side_for_crops} px (crops of 224)": at_least(RECIPE.side_for_crops),
        f"at least {small.side_for_crops} px (2,000 photos)": at_least(small.side_for_crops),
    }
    for name, ratio in ratios(runs, repeats).items():
        print(f"12 megapixels: {name} {1 / ratio:.2f} times as fast", flush=True)


def indexing(folder: Path, repeats: int) -> None:
    """Print the time relative to a bare walk."""
    for place in range(100):
        inside = folder / f"class {place}"
        inside.mkdir()
        for number in range(1000):
            (inside / f"img_{number}.jpg").touch()

    def walk() -> None:
        assert sum(len(files) for *_, files in os.walk(folder)) == 100_000

    def index() -> None:
        assert len(list_images(folder).images) == 100_000

    for name, ratio in ratios({"os.walk": walk, "list_images": index}, repeats).items():
        print(f"100,000 files: {name} {ratio:.2f} times as long", flush=True)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        decoding(Path(folder), repeats)
    with tempfile.TemporaryDirectory() as folder:
        indexing(Path(folder), repeats)


if __name__ == "__main__":
    main()
