"""Small images, and the ways in which users bring them."""

import io
import tarfile

import numpy as np
from PIL import Image

from sklearn_excb.data.sources import ArrayImages

GRAY = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def folder_of(tmp_path, images, names=None):
    for i, image in enumerate(images):
        path = tmp_path / (names[i] if names else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path


def all_of(source):
    if isinstance(source, ArrayImages):
        return source.load(np.arange(len(source)))
    return [source.load_one(i) for i in range(len(source))]


def tar_of(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def as_png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
