"""From the bytes of an image file to pixels: a header first, then a decoder that is allowed to.

simplejpeg (libjpeg-turbo) for plain JPEGs; Pillow for everything it refuses: CMYK, PNG, WebP, a PNG
named JPEG, JPEGs with small faults. What they are named does not matter, only their first bytes.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

#: Larger images are not decoded: a header may promise any number of pixels. The largest of
#: ImageNet has 61 million.
MAX_PIXELS = 1 << 26

_FORMATS = ("JPEG", "PNG", "WEBP")


class UnreadableImage(Exception):
    """An image that does not decode, or that nobody should try to decode."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image whose header was read."""

    data: bytes
    height: int
    width: int
    is_plain_jpeg: bool
    """Whether simplejpeg may try it."""


def read_header(data: bytes) -> Encoded:
    """Reads size and kind from an image's header, without decoding it.

    Raises: UnreadableImage: no JPEG, PNG or WebP, or one of more than MAX_PIXELS.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # Pillow may still know what to do with it
        else:
            _refuse_bomb(int(height), int(width))
            return Encoded(data, int(height), int(width), colours != "CMYK" and colours != "YCCK")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _refuse_bomb(image.height, image.width)
            return Encoded(data, image.height, image.width, False)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more
        raise UnreadableImage(_first_line(error)) from None


def decode(image: Encoded, *, reduction: int = 1) -> np.ndarray:
    """Decodes an image to uint8 [H, W, 3].

    Args:
        reduction: 1, 2, 4 or 8: decode at that fraction of the sides, rounded up.
    Returns: of the reduced size if the decoder can do that, else of the whole size.
    Raises: UnreadableImage: the content is damaged.
    """
    if image.is_plain_jpeg:
        try:
            pixels = simplejpeg.decode_jpeg(
                image.data,
                colorspace="RGB",
                min_height=-(-image.height // reduction),
                min_width=-(-image.width // reduction),
                min_factor=reduction,
            )
            return np.asarray(pixels)
        except ValueError:
            pass
    try:
        with Image.open(io.BytesIO(image.data), formats=_FORMATS) as opened:
            return np.array(opened.convert("RGB"))
    except Exception as error:
        raise UnreadableImage(_first_line(error)) from None


def _refuse_bomb(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise UnreadableImage(
            f"its header claims {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are decoded"
        )


def quiet() -> warnings.catch_warnings[None]:
    """Silences what Pillow says of odd EXIF blocks, palettes and large images.

    For whoever decodes many; entered once and not per image, because it is not safe in threads.
    """
    return warnings.catch_warnings(action="ignore")


def _first_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text names an object in memory
        return "it is no JPEG, PNG or WebP, or its header is damaged"
    return str(error).partition("\n")[0][:120] or type(error).__name__
