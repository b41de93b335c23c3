"""From the bytes of an image file to pixels: a header first, then a decoder that is allowed to.

simplejpeg (libjpeg-turbo) for plain JPEGs; Pillow for everything it refuses: CMYK, PNG, WebP, a PNG
named JPEG, JPEGs with small faults; and for all where simplejpeg does not load. What images are
named does not matter, only their first bytes.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

try:
    import simplejpeg
except ImportError as error:  # its wheels cover what torch's cover; a system may still refuse it
    simplejpeg, _missing = None, str(error)

log = logging.getLogger("vitwarm")

#: Larger images are not decoded: a header may promise any number of pixels. The largest of
#: ImageNet has 61 million.
MAX_PIXELS = 1 << 26

_FORMATS = ("JPEG", "PNG", "WEBP")

#: Markers of a JPEG (ITU-T T.81, Table B.1): frames of sequential Huffman coding, of other coding,
#: the start of a scan, the end of the image.
_SEQUENTIAL = (0xC0, 0xC1)
_OTHER_FRAMES = (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_SCAN = 0xDA
_END = b"\xff\xd9"


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
    if data[:2] == b"\xff\xd8" and simplejpeg:
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


def decode(image: Encoded, *, reduction: int = 1, rows: int | None = None) -> np.ndarray:
    """Decodes an image to uint8 [H, W, 3].

    Args:
        reduction: 1, 2, 4 or 8: decode at that fraction of the sides, rounded up, if possible.
        rows: of the whole size, from the top, that are needed; None: all. Others may be missing.
    Raises: UnreadableImage: the content is damaged.
    """
    if image.is_plain_jpeg:
        upper = None if rows is None else _claim_rows(image, rows)
        if upper:
            with suppress(ValueError):
                # What follows the last row claimed is extraneous to libjpeg, and no fault.
                return _decode_jpeg(upper, reduction, strict=False)
        with suppress(ValueError):
            return _decode_jpeg(image, reduction, strict=True)
    try:
        with Image.open(io.BytesIO(image.data), formats=_FORMATS) as opened:
            if reduction > 1:  # a JPEG then is decoded small, anything else whole
                opened.draft("RGB", (image.width // reduction, image.height // reduction))
            if opened.mode.startswith("I"):  # 16 bits of grey, of which Pillow would show white
                grey = (np.asarray(opened) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(opened.convert("RGB"))
    except Exception as error:
        raise UnreadableImage(_first_line(error)) from None


def _decode_jpeg(image: Encoded, reduction: int, *, strict: bool) -> np.ndarray:
    pixels = simplejpeg.decode_jpeg(
        image.data,
        colorspace="RGB",
        min_height=-(-image.height // reduction),
        min_width=-(-image.width // reduction),
        min_factor=reduction,
        strict=strict,
    )
    return np.asarray(pixels)


def _claim_rows(image: Encoded, rows: int) -> Encoded | None:
    """Makes the header of a JPEG claim only the rows from the top that are needed.

    A decoder goes through a JPEG from the top and stops at the last row it knows of. One row of
    blocks more than needed keeps the last ones exact, where chroma is interpolated.

    Returns: None where that saves nothing, or for other JPEGs than whole, sequential ones.
    """
    data = image.data
    if data[-2:] != _END:  # perhaps cut short, which only a whole decoding finds out
        return None
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF and data[place + 1] not in _SEQUENTIAL:
        if data[place + 1] in _OTHER_FRAMES or data[place + 1] == _SCAN:
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    # Behind marker, length and precision: height, width, components; three bytes for each of those.
    if data[place + 5 : place + 9] != image.height.to_bytes(2) + image.width.to_bytes(2):
        return None
    sampling = data[place + 11 : place + 10 + 3 * data[place + 9] : 3]
    block_rows = 8 * max((factors & 15 for factors in sampling), default=0)
    height = (-(-rows // block_rows) + 1) * block_rows if block_rows else 0
    if not 0 < height < image.height:
        return None
    claim = data[: place + 5] + height.to_bytes(2) + data[place + 7 :]
    return Encoded(claim, height, image.width, True)


def _refuse_bomb(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise UnreadableImage(
            f"its header claims {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are decoded"
        )


@cache
def tell_decoder() -> None:
    """Logs, once, where JPEGs are decoded the slow way. Called by whoever begins to read images."""
    if simplejpeg is None:
        log.warning(
            "simplejpeg does not load (%s), so Pillow decodes: the same images, more slowly. "
            "`pip install simplejpeg` mends it.",
            _missing,
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
