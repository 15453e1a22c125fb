"""Finds and decodes images: colour, grey, with alpha, 8 or 16 bits."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from adabm_basicsr.data.headers import MAX_PIXELS, TIFF_STARTS, check_header
from adabm_basicsr.errors import ImageError, not_found, why_link_is_broken
from adabm_basicsr.files import atomic_path, exists, is_file, is_folder

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
GREY, RGB = 1, 3  # channels
OPAQUE = 255
JPEG_START = b"\xff\xd8"
EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF")  # in JPEG, PNG and WebP files
# As the file's EXIF says it is to be shown, in its own depth, without alpha.
AS_SHOWN = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH


def list_images(folder: str | Path, key: str = "folder") -> list[Path]:
    """Image files directly in ``folder``, sorted by name; ``key`` is the option that named it.

    Raises:
        ImageError: The folder is absent or holds no image.
    """
    paths = find_images(folder, key)
    if not paths:
        raise ImageError(
            f"{key}: folder {folder} holds no images ({', '.join(sorted(EXTENSIONS))})"
        )
    return paths


def find_images(folder: str | Path, key: str) -> list[Path]:
    """As `list_images`, but there may be none.

    Raises:
        ImageError: The folder is absent.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise not_found(f"{key}: folder", folder, ImageError)
    paths = []
    try:
        for path in folder.iterdir():
            is_hidden = path.name.startswith(".")
            if not is_hidden and path.suffix.lower() in EXTENSIONS:
                paths.append(path)
    except OSError as error:
        raise ImageError(f"{key}: folder {folder} cannot be read: {error.strerror}") from error
    return sorted(paths)


def read_image(path: Path, channels: int = RGB, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read and decode an image file; see `decode_image`.

    Raises:
        ImageError: The file can't be read or decoded.
    """
    return decode_image(_content(path), str(path), channels, max_pixels)


def read_pixels(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read and decode an image file as it is; see `decode_pixels`.

    Raises:
        ImageError: The file can't be read or decoded.
    """
    return decode_pixels(_content(path), str(path), max_pixels)


def _content(path: Path) -> bytes:
    why = why_link_is_broken(path)
    if why:
        raise ImageError(f"image {path} {why}")
    # A pipe or a device would be read for ever.
    if exists(path) and not is_file(path):
        raise ImageError(f"image {path} cannot be read: it is no file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"image {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise ImageError(f"image {path} cannot be read: {error}") from error


def write_image(image: np.ndarray, path: str | Path) -> None:
    """Write an image atomically, in the format that the name's ending says.

    Args:
        image: ``(H, W, 3)`` BGR or ``(H, W)``.
        path: The file.

    Raises:
        AdaBMError: The file can't be written; an earlier one is left whole.
    """
    _, content = cv2.imencode(Path(path).suffix, image)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def decode_image(
    content: bytes, name: str, channels: int = RGB, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an image file, turned as its EXIF says that it is to be shown.

    The content counts, whatever the name says that it is.

    Args:
        content: The file's bytes.
        name: What to call it in an error.
        channels: 3 for RGB (grey is repeated), 1 for grey (colour is converted). Alpha is dropped.
        max_pixels: Larger images are not decoded.

    Returns:
        ``(H, W, channels)``, RGB, of the file's own type (uint8, uint16 or float32).

    Raises:
        ImageError: The image can't be decoded, is too large or one of several, or has another type
            or NaN values.
    """
    return to_channels(decode_pixels(content, name, max_pixels), channels)


def decode_pixels(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file with the channels that it has; otherwise as `decode_image`.

    Returns:
        ``(H, W, C)``: grey, BGR or BGR with alpha.
    """
    check_header(content, name, max_pixels)
    image = _decode(content, name)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(
            f"image {name} has values of type {image.dtype}; "
            f"8-bit, 16-bit and float32 images are read"
        )
    if not np.isfinite(image).all():
        raise ImageError(f"image {name} holds NaN or infinite values")
    if image.dtype == np.float32 and not (image.min() >= 0 and image.max() <= 1):
        raise ImageError(f"image {name} has float values outside 0..1")
    return np.atleast_3d(image)


def _decode(content: bytes, name: str) -> np.ndarray:
    """``(H, W)`` or ``(H, W, C)``, turned as it is to be shown."""
    if content.startswith(JPEG_START):
        return _imdecode(content, AS_SHOWN, name)
    image = _imdecode(content, cv2.IMREAD_UNCHANGED, name)
    has_alpha = np.atleast_3d(image).shape[2] > RGB
    if content.startswith(TIFF_STARTS):  # OpenCV has turned it already
        # Of 8-bit files OpenCV multiplies alpha into the colours.
        if has_alpha and image.dtype == np.uint8 and (image[..., RGB:] != OPAQUE).any():
            raise ImageError(
                f"image {name} is a TIFF file with transparent pixels; "
                f"make it PNG, or drop its alpha"
            )
        return image
    if not any(mark in content for mark in EXIF_MARKS):
        return image
    shown = _imdecode(content, AS_SHOWN, name)
    if not has_alpha:
        return shown
    if not np.array_equal(shown, image[..., :RGB]):
        raise ImageError(
            f"image {name} has alpha and EXIF that turns it; save it as it is to be shown"
        )
    return image


def _imdecode(content: bytes, flags: int, name: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(f"image {name} is broken or of an unknown format")
    return image


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Pixels as OpenCV gives them, in the channels that a network takes.

    Args:
        image: ``(H, W, C)``: grey, BGR or BGR with alpha.
        channels: 3 for RGB, 1 for grey.

    Returns:
        ``(H, W, channels)``.
    """
    if image.shape[2] < RGB:
        return np.repeat(image[..., :1], channels, axis=2)
    conversion = cv2.COLOR_BGR2RGB if channels == RGB else cv2.COLOR_BGR2GRAY
    converted = cv2.cvtColor(image[..., :RGB], conversion)
    height, width = image.shape[:2]
    return converted.reshape(height, width, channels)


def to_grey(image: np.ndarray, tolerance: int = 0) -> np.ndarray:
    """The one channel of a grey image, whose file may have three that are the same.

    Args:
        image: ``(H, W, C)``: grey, BGR or BGR with alpha.
        tolerance: How far apart the three may be.

    Returns:
        ``(H, W, 1)``.

    Raises:
        ImageError: It has colours.
    """
    if image.shape[2] >= RGB:
        colours = image[..., :RGB]
        if (colours.max(2) - colours.min(2) > tolerance).any():
            raise ImageError("the network takes grey images, this one has colours")
    return to_channels(image, GREY)


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Pixels of any type that `decode_image` returns, as float32 in 0..1."""
    if image.dtype == np.float32:
        return image
    return image.astype(np.float32) / np.iinfo(image.dtype).max
