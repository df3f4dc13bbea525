"""Decode a PIL image whole, whatever ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` says.

That setting belongs to the whole process. Where it is set, Pillow makes up the missing part of a
broken file. Decoders of our own refuse such a file, and leave the setting to other threads.
"""

import sys
from functools import partial
from typing import Any


class WholeDecoder:
    """A decoder of Pillow that refuses data that are broken or end too early.

    Parameters
    ----------
    codec : str
        Pillow's name of the codec.
    mode, *args
        What Pillow passes to the codec.
    """

    def __init__(self, codec: str, mode: str, *args: Any) -> None:
        from PIL import Image

        self._decoder: Any = Image._getdecoder(mode, codec, args)
        self.pulls_fd: bool = self._decoder.pulls_fd
        self.setimage, self.setfd = self._decoder.setimage, self._decoder.setfd
        self._ended = self.pulls_fd  # it reads the file itself, and needs no more data
        self._earlier = sys.exception()

    def decode(self, data: bytes) -> tuple[int, int]:
        """Decode a part of the data; return the number of bytes used, negative at the end."""
        from PIL import Image

        used, status = self._decoder.decode(data)
        self._ended |= used < 0
        if status < 0:
            raise OSError(f"{Image.core.getcodecstatus(status)} when reading image file")
        return used, status

    def cleanup(self) -> None:
        """Free the decoder; refuse the file if it ended before the image did."""
        self._decoder.cleanup()
        if not self._ended and sys.exception() is self._earlier:
            raise OSError("image file is truncated")


def load_whole(picture: Any) -> None:
    """Decode the pixels of a PIL image, unless they are decoded already.

    Raises
    ------
    OSError
        If the file is broken or cut short.
    """
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return
    if getattr(picture, "format", None) in ("JPEG", "MPO"):
        picture.load_read = picture.fp.read  # Pillow's would add the end of a file cut short
    picture.tile = [_refusing(tile) for tile in tiles]
    try:
        picture.load()
    except BaseException:
        picture.tile = tiles
        raise
    finally:
        picture.__dict__.pop("load_read", None)


def _refusing(tile: Any) -> Any:
    """Return a part of a PIL image that is still to be decoded, with a decoder that refuses."""
    from PIL import Image

    codec = tile[0]
    if codec == "libtiff" or not hasattr(tile, "_replace"):  # libtiff refuses by itself
        return tile
    name = f"whole {codec}"
    register: Any = Image.register_decoder
    register(name, partial(WholeDecoder, codec))
    return tile._replace(codec_name=name)
