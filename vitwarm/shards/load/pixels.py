"""From the bytes of an image file to the pixels of its crop: a header, a crop, a decoder, a resize.

simplejpeg (libjpeg-turbo) decodes plain JPEGs; Pillow everything it refuses (CMYK, PNG, WebP, a PNG
named JPEG, small faults), and all where simplejpeg does not load. What images are named does not
matter, only their first bytes. Crops are pure functions of (seed, epoch, row).
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitwarm.seeding import hash_bits, mix_u64

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

#: A JPEG is decoded at a half (a quarter, an eighth) of its size where the crop then still has so
#: many times the pixels asked for. On 250 ImageNet images at 64 to 112 px the result differs from a
#: whole decoding by 0.9 / 255 on average with 1.5, by 1.5 / 255 with 1.
SCALE_MARGIN = 1.5

#: Draws of a random crop before it falls back to a centred one (torchvision's number).
ATTEMPTS = 10

#: Of the draws that one crop can need: a flip, two of `pad`, four per attempt of `rrc`.
_DRAW_KEYS = np.array([[hash_bits(k, "draw")] for k in range(3 + 4 * ATTEMPTS)], np.uint64)

#: Pixels of an image: of both sides, or height and width.
Size = int | tuple[int, int]


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


@dataclass(frozen=True)
class _Crop:
    size: Size

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class TrainCrop(_Crop):
    """A random crop, resized, and a random flip.

    `rrc`: torchvision's RandomResizedCrop (Szegedy 2014). `pad`: a box of the image's own size out
    of the image reflected at its edges by an eighth; boxes then may begin below zero.

    Crops much larger than `size` lie on the grid of the reduced decoding (see `reduction`), at most
    seven pixels from where torchvision has them.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mode: Literal["rrc", "pad"] = "rrc"

    def boxes(
        self,
        seed: int,
        epochs: np.ndarray,
        rows: np.ndarray,
        heights: np.ndarray | int,
        widths: np.ndarray | int,
    ) -> np.ndarray:
        """Returns float32 [b, 5]: top, left, height, width, and 1 for a flip."""
        n = len(rows)
        heights = np.broadcast_to(np.asarray(heights, np.float64), n)
        widths = np.broadcast_to(np.asarray(widths, np.float64), n)
        key = hash_bits(seed, "crop")
        base = mix_u64(np.asarray(rows), key) ^ mix_u64(np.asarray(epochs), key ^ 1)
        out = np.empty((n, 5), np.float32)
        bits = mix_u64(base, _DRAW_KEYS)  # all draws of each stream, uniform in [0, 1): [draws, b]
        draw = (bits >> np.uint64(11)).astype(np.float64) / 2.0**53
        out[:, 4] = draw[0] < self.hflip
        if self.mode == "pad":
            pad_h, pad_w = np.round(heights / 8), np.round(widths / 8)
            out[:, 0] = np.floor(draw[1] * (2 * pad_h + 1)) - pad_h
            out[:, 1] = np.floor(draw[2] * (2 * pad_w + 1)) - pad_w
            out[:, 2], out[:, 3] = heights, widths
            return out
        self._fallback(out, heights, widths)
        # All attempts at once, [ATTEMPTS, b] each: most of the time would go into the calls.
        u_area, u_aspect, u_top, u_left = draw[3:].reshape(ATTEMPTS, 4, n).transpose(1, 0, 2)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        area = heights * widths * (self.scale[0] + (self.scale[1] - self.scale[0]) * u_area)
        aspect = np.exp(low + (high - low) * u_aspect)
        box_w, box_h = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
        fits = (box_w >= 1) & (box_w <= widths) & (box_h >= 1) & (box_h <= heights)
        some = np.flatnonzero(fits.any(axis=0))
        at = fits.argmax(axis=0)[some], some  # the first attempt that fits
        out[some, 0] = np.floor(u_top[at] * (heights[some] - box_h[at] + 1))
        out[some, 1] = np.floor(u_left[at] * (widths[some] - box_w[at] + 1))
        out[some, 2], out[some, 3] = box_h[at], box_w[at]
        grid = self.reduction(out)[:, None]
        out[:, :4] -= out[:, :4] % grid
        return out

    def reduction(self, boxes: np.ndarray) -> np.ndarray:
        """Returns by what each of `boxes` may be shrunk while decoding: 1, 2, 4 or 8; int64 [b]."""
        if self.mode == "pad":
            return np.ones(len(boxes), np.int64)
        least = [math.ceil(SCALE_MARGIN * side) for side in self.sides]
        room = (boxes[:, 2:4] // least).min(axis=1)
        return np.select([room >= 8, room >= 4, room >= 2], [8, 4, 2], 1)

    def _fallback(self, out: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> None:
        """Fills in the largest centred box whose aspect ratio is allowed."""
        aspect = widths / heights
        box_w = np.where(aspect > self.ratio[1], np.round(heights * self.ratio[1]), widths)
        box_h = np.where(aspect < self.ratio[0], np.round(widths / self.ratio[0]), heights)
        out[:, 0], out[:, 1] = (heights - box_h) // 2, (widths - box_w) // 2
        out[:, 2], out[:, 3] = box_h, box_w


@dataclass(frozen=True)
class EvalCrop(_Crop):
    """The image scaled until it covers sides of size / crop_pct pixels, then the centre of it.

    For a square torchvision's Resize and CenterCrop, otherwise timm's ResizeKeepRatio before it.
    """

    crop_pct: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width that an image is resized to before the centre is cut out."""
        down, across = (math.floor(side / self.crop_pct) for side in self.sides)
        if down == across:
            shorter = min(height, width)
            return int(down * height / shorter), int(down * width / shorter)
        ratio = min(height / down, width / across)
        return round(height / ratio), round(width / ratio)

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Returns top and left of the centre of an image of this size."""
        down, across = self.sides
        return round((height - down) / 2), round((width - across) / 2)


def cut_out(
    pixels: np.ndarray, box: Sequence[float], sides: tuple[int, int], *, interpolation: str
) -> np.ndarray:
    """Cuts (top, left, height, width, flip) out of an image and resizes it with antialiasing.

    Boxes that reach over the edge see the image reflected there.

    Args:
        pixels: uint8 [H, W, 3].
        sides: height and width of the result.
    Returns: uint8 [height, width, 3].
    """
    top, left, height, width = (int(v) for v in box[:4])
    over = max(-top, -left, top + height - pixels.shape[0], left + width - pixels.shape[1], 0)
    if over:
        pixels = np.pad(pixels, ((over, over), (over, over), (0, 0)), mode="reflect")
        top, left = top + over, left + over
    out = resize(pixels[top : top + height, left : left + width], *sides, interpolation)
    return out[:, ::-1] if box[4] else out


def centre(pixels: np.ndarray, crop: EvalCrop) -> np.ndarray:
    """Resizes an image and cuts out its centre; uint8 [height, width, 3], the crop's sides."""
    out = resize(pixels, *crop.scaled(*pixels.shape[:2]), crop.interpolation)
    (top, left), (height, width) = crop.corner(*out.shape[:2]), crop.sides
    return out[top : top + height, left : left + width]


def resize(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resizes uint8 [H, W, 3] with antialiasing to uint8 [height, width, 3].

    torch's kernel for bytes: a quarter of Pillow's time, and within 1 / 255 of its result.
    """
    import torch  # here: checking shards does without

    # Channels last beyond doubt: with a batch dimension of another stride the kernel would take the
    # images for planar and spend a third of its time on taking the pixels apart.
    x_1CHW = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if pixels.shape[:2] != (height, width):
        x_1CHW = torch.nn.functional.interpolate(
            x_1CHW, size=(height, width), mode=interpolation, antialias=True, align_corners=False
        )
    return np.asarray(x_1CHW[0].permute(1, 2, 0).numpy())
