"""What an image file says of itself, read before it is decoded.

That is enough to reject what would fill the memory or lose frames.
"""

from __future__ import annotations

import io

import cv2
import imagesize
import numpy as np
from tifffile import TiffFile, TiffPage

from adabm_basicsr.errors import ImageError, check_range

# Four images of 8K. A PNG of a few kilobytes can hold a thousand times as many.
MAX_PIXELS = 1 << 27
OPENCV_PIXELS = 1 << 30  # beyond which OpenCV decodes nothing
TIFF_STARTS = (b"II*\0", b"MM\0*")
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_ANIMATION = b"acTL"
PNG_PIXELS = b"IDAT"


def check_header(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Check that a file is one image of at most ``max_pixels``.

    Args:
        content: The file's bytes.
        name: What to call it in an error.
        max_pixels: Largest height times width.

    Raises:
        ImageError: It isn't.
    """
    several = False
    try:
        width, height = imagesize.get(io.BytesIO(content))
        if width > 0 and width * height <= max_pixels:
            several = _has_frames(content)
    except Exception as error:  # whatever the parsers stumble over
        raise ImageError(f"image {name} is broken or of an unknown format") from error
    if width < 1 or height < 1:
        raise ImageError(f"image {name} is broken or of an unknown format")
    if width * height > max_pixels:
        raise ImageError(
            f"image {name} has {width}x{height} pixels, more than max_pixels {max_pixels} allows"
        )
    if several:
        raise ImageError(f"image {name} holds several frames or pages; only single images are read")


def _has_frames(content: bytes) -> bool:
    if content.startswith(TIFF_STARTS):
        pages = 0
        with TiffFile(io.BytesIO(content)) as tiff:
            for page in tiff.pages:
                if isinstance(page, TiffPage) and not page.is_reduced:  # a preview is no page
                    pages += 1
        return pages > 1
    if content.startswith(PNG_START):
        before_pixels = content[: content.find(PNG_PIXELS)]
        return PNG_ANIMATION in before_pixels
    bytes_ = np.frombuffer(content, np.uint8)
    has_second, _ = cv2.imdecodemulti(bytes_, cv2.IMREAD_COLOR, range=(1, 2))
    return has_second


def check_max_pixels(where: str, value: object) -> int:
    """Check a limit on pixels, which is returned, or the default for None.

    Args:
        where: The option, for the message.
        value: Its value.

    Raises:
        OptionError: It is not a number of pixels that OpenCV decodes.
    """
    if value is None:
        return MAX_PIXELS
    return check_range(where, value, 1, OPENCV_PIXELS)
