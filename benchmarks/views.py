"""Speed of multi-crop from JPEG files to normalised crops, relative to common pipelines.

    python -m benchmarks.views
    python -m benchmarks.views --images FOLDER
    python -m benchmarks.views --without-fast   # does not use Numba and simplejpeg

Each image has two views of 224 and six of 96 pixels, by the published recipe (crop, flip, jitter,
gray, blur, solarise, normalise). The pipelines run in turns on the same files. The script prints
the images per second of each pipeline relative to the PIL pipeline, as the median ratio over the
turns.

- PIL: torchvision's transforms on PIL images, with Pillow's blur, as in the release of DINO.
- v2: torchvision's transforms v2 on uint8 tensors.
- ours: decoding, crops, and the batched operations.
- ours, read and cropped: the part that runs in threads if the model is on another device.

Without ``--images``, the script writes 64 synthetic JPEGs of 500 x 375 pixels with the spectrum of
photos.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from sklearn_excb.data import image_files
from sklearn_excb.data.open_source import open_source
from sklearn_excb.data.sources import ItemImages
from sklearn_excb.runtime.threads import reader_threads
from sklearn_excb.training.build import IMAGENET_MEAN, IMAGENET_STD
from sklearn_excb.views import augmentation
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.view_maker import begin_crops

GLOBAL, LOCAL, N_GLOBAL, N_LOCAL = 224, 96, 2, 6
SCALE, LOCAL_SCALE = (0.25, 1.0), (0.05, 0.25)
JITTER = (0.4, 0.4, 0.2, 0.1)
BATCH = 32

RECIPE = ViewRecipe(
    GLOBAL,
    LOCAL,
    N_GLOBAL,
    N_LOCAL,
    smallest_global=(SCALE[0], SCALE[0]),
    smallest_local=LOCAL_SCALE[0],
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    flip=0.5,
)


def photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Return colour noise whose amplitude falls as 1 / frequency, like that of photos."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    shape = (3, *amplitude.shape)
    phases = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    waves = np.fft.irfft2(phases * amplitude, s=(height, width))
    waves = waves[:1] + 0.5 * waves  # the channels of photos are mostly similar
    waves = (waves - waves.mean()) / waves.std()
    return Image.fromarray((127 + 50 * waves).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def write_photos(folder: Path, n: int, height: int, width: int) -> list[str]:
    """Write photos as JPEG files."""
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{i}.jpg") for i in range(n)]
    for path in paths:
        photo(rng, height, width).save(path, quality=92)
    return paths


class PillowBlur:
    """Gaussian blur of a PIL image by a random sigma."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blur the image."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


def augmentations(v: Any, blur: float, solarize: float) -> list[Any]:
    """Return the operations of both torchvision pipelines on a crop."""
    sigma = (0.1, 2.0)
    gaussian = v.GaussianBlur(9, sigma) if v is v2 else PillowBlur(sigma)
    return [
        v.RandomHorizontalFlip(0.5),
        v.RandomApply([v.ColorJitter(*JITTER)], p=0.8),
        v.RandomGrayscale(0.2),
        v.RandomApply([gaussian], p=blur),
        v.RandomSolarize(128, p=solarize),
    ]


class Torchvision(Dataset[list[torch.Tensor]]):
    """Data set that returns the crops of a file, by transforms on PIL images or on tensors."""

    def __init__(self, paths: list[str], *, tensors: bool) -> None:
        self.paths, self.tensors = paths, tensors
        v: Any = v2 if tensors else v1
        bicubic = v1.InterpolationMode.BICUBIC
        end: list[Any] = [v2.ToDtype(torch.float32, scale=True)] if tensors else [v1.ToTensor()]
        end += [v.Normalize(IMAGENET_MEAN, IMAGENET_STD)]

        def crop(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Any:
            resized = v.RandomResizedCrop(size, scale, interpolation=bicubic)
            return v.Compose([resized, *augmentations(v, blur, solarize), *end])

        self.crops = [crop(GLOBAL, SCALE, 0.0, 0.0), crop(GLOBAL, SCALE, 0.9, 0.2)]
        self.crops += [crop(LOCAL, LOCAL_SCALE, 0.0, 0.0)] * N_LOCAL

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        content = Path(self.paths[index]).read_bytes()
        image: Any = Image.open(io.BytesIO(content)).convert("RGB")
        if self.tensors:
            image = v2.functional.pil_to_tensor(image)
        return [crop(image) for crop in self.crops]


def torchvision_views(paths: list[str], workers: int, *, tensors: bool) -> Callable[[], None]:
    """Load the views of all files once."""
    loader = DataLoader(
        Torchvision(paths, tensors=tensors),
        batch_size=BATCH,
        num_workers=0 if workers == 1 else workers,
        persistent_workers=workers > 1,
        drop_last=True,  # as in our pipeline
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def our_views(paths: list[str], workers: int, *, crops_only: bool) -> Callable[[], None]:
    """Load the views of all files once, in the same order."""
    source = open_source(paths)
    assert isinstance(source, ItemImages)
    batches = ViewBatches(source, RECIPE, BATCH, 1, 0, workers, torch.device("cpu"))

    def run() -> None:
        for _ in batches:
            pass

    def read_and_crop() -> None:
        memory: list[torch.Tensor] = []
        with reader_threads(workers) as read:
            for rows in np.arange(len(paths)).reshape(-1, BATCH):
                begin_crops(source, rows, batches.draw(rows, 1), memory, read)()

    return read_and_crop if crops_only else run


def turns(
    pipelines: dict[str, Callable[[], None]], n_images: int, repeats: int
) -> Iterator[dict[str, float]]:
    """Return the images per second of each pipeline in each turn; the first turn warms up."""
    for turn in range(repeats + 1):
        rates = {}
        for name, run in pipelines.items():
            start = time.perf_counter()
            run()
            rates[name] = n_images / (time.perf_counter() - start)
        if turn:
            yield rates


def main() -> None:
    """Time the pipelines in turns and print their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of JPEGs (default: synthetic ones)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-fast", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    if arguments.without_fast:
        augmentation.compiled_loops = lambda recipe: None
        image_files.simplejpeg = None
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images:
            paths = [str(path) for path in sorted(arguments.images.glob("*.jp*g"))[:64]]
            paths = paths[: len(paths) // BATCH * BATCH]
        else:
            paths = write_photos(Path(folder), 2 * BATCH, 375, 500)
        if not paths:
            raise SystemExit(
                f"{arguments.images} holds fewer than {BATCH} JPEGs, needed at least so many."
            )
        for workers in arguments.workers:
            torch.set_num_threads(workers)
            pipelines = {
                "PIL": torchvision_views(paths, workers, tensors=False),
                "v2": torchvision_views(paths, workers, tensors=True),
                "ours": our_views(paths, workers, crops_only=False),
                "ours, read and cropped": our_views(paths, workers, crops_only=True),
            }
            found = list(turns(pipelines, len(paths), arguments.repeats))
            for name in pipelines:
                ratio = statistics.median(rates[name] / rates["PIL"] for rates in found)
                rate = statistics.median(rates[name] for rates in found)
                print(f"{workers} workers: {name} {ratio:.2f} ({rate:.0f} images/s)", flush=True)


if __name__ == "__main__":
    main()
