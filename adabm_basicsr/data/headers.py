"""What an image file says of itself: enough to refuse what would fill the memory or lose frames, before decoding it."""

from __future__ import annotations

import argparse
import io

import cv2
import imagesize
import numpy as np
from tifffile import TiffFile

from adabm_basicsr.errors import AdaBMError

MAX_PIXELS = (
    1 << 27
)  # four images of 8K; a PNG of a few kilobytes can hold a thousand times as many
OPENCV_PIXELS = 1 << 30  # beyond which OpenCV decodes nothing
TIFF_STARTS = (b"II*\0", b"MM\0*")
PNG_START, PNG_ANIMATION, PNG_PIXELS = b"\x89PNG\r\n\x1a\n", b"acTL", b"IDAT"


def check_header(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise `AdaBMError` for a file that isn't one image of at most ``max_pixels``.

    Args:
        content: The file's bytes.
        name: What to call it in an error.
        max_pixels: Largest height times width.
    """
    try:
        width, height = imagesize.get(io.BytesIO(content))
        several = width > 0 and width * height <= max_pixels and _has_frames(content)
    except Exception as error:  # whatever its parsers stumble over
        raise AdaBMError(f"image {name} is broken or of an unknown format") from error
    if width < 1 or height < 1:
        raise AdaBMError(f"image {name} is broken or of an unknown format")
    if width * height > max_pixels:
        raise AdaBMError(
            f"image {name} has {width}x{height} pixels, more than max_pixels {max_pixels} allows"
        )
    if several:
        raise AdaBMError(f"image {name} holds several frames or pages; only single images are read")


def _has_frames(content: bytes) -> bool:
    if content.startswith(TIFF_STARTS):
        with TiffFile(io.BytesIO(content)) as tiff:
            return sum(not page.is_reduced for page in tiff.pages) > 1  # a preview is no page
    if content.startswith(PNG_START):
        return PNG_ANIMATION in content[: content.find(PNG_PIXELS)]
    return cv2.imdecodemulti(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR, range=(1, 2))[0]


def check_max_pixels(where: str, value: object) -> int:
    """``value``, or the default for None; `AdaBMError` if it is no number of pixels. ``where`` names the option."""
    if value is None:
        return MAX_PIXELS
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= OPENCV_PIXELS:
        raise AdaBMError(f"{where}: {value!r} is out of range; valid: 1 to {OPENCV_PIXELS}")
    return value


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """The flag that lets larger images in."""
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse images of more pixels, which may be made to fill the memory (default: %(default)s)",
    )
