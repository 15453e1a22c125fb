"""Image files of every kind, whole and broken, as bytes."""

import io
import zlib

import cv2
import numpy as np
from conftest import photograph
from PIL import Image

PIXELS = photograph(20, 28)  # RGB here
PICTURE = Image.fromarray(PIXELS)
PALETTE = PICTURE.quantize(16)
TRANSPARENT = Image.fromarray(np.dstack([PIXELS, np.arange(560, dtype=np.uint8).reshape(20, 28)]))
# EXIF's orientation: of an image as it is, and of one that is to be turned by a quarter.
ORIENTATION = 0x112
UPRIGHT = 1
ROTATE_RIGHT = 6


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def by_opencv(suffix, pixels):
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    return cv2.imencode(suffix, pixels)[1].tobytes()


def with_exif(kind, orientation=ROTATE_RIGHT, picture=PICTURE, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture, kind, exif=exif, **options)


def grey(picture):
    return np.repeat(np.asarray(picture.convert("L"))[..., None], 3, 2)


# What a file holds, its bytes, and the pixels that are to come out.
KINDS = {
    "RGB PNG": (encoded(PICTURE, "PNG"), PIXELS),
    "RGB BMP": (encoded(PICTURE, "BMP"), PIXELS),
    "RGB TIFF": (encoded(PICTURE, "TIFF"), PIXELS),
    "RGB WebP": (encoded(PICTURE, "WEBP", lossless=True), PIXELS),
    "RGB PPM": (encoded(PICTURE, "PPM"), PIXELS),
    "grey PNG": (encoded(PICTURE.convert("L"), "PNG"), grey(PICTURE)),
    "1-bit PNG": (encoded(PICTURE.convert("1"), "PNG"), grey(PICTURE.convert("1"))),
    "1-bit TIFF": (encoded(PICTURE.convert("1"), "TIFF"), grey(PICTURE.convert("1"))),
    "1-bit PBM": (encoded(PICTURE.convert("1"), "PPM"), grey(PICTURE.convert("1"))),
    "palette PNG": (encoded(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "palette PNG with transparency": (
        encoded(PALETTE, "PNG", transparency=3),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "palette BMP": (encoded(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB"))),
    "palette TIFF": (encoded(PALETTE, "TIFF"), np.asarray(PALETTE.convert("RGB"))),
    "RGBA PNG": (encoded(TRANSPARENT, "PNG"), PIXELS),
    "RGBA WebP": (encoded(TRANSPARENT, "WEBP", lossless=True, exact=True), PIXELS),
    "grey PNG with alpha": (encoded(PICTURE.convert("LA"), "PNG"), grey(PICTURE)),
    "CMYK TIFF": (encoded(PICTURE.convert("CMYK"), "TIFF"), PIXELS),
    "16-bit PNG": (by_opencv(".png", PIXELS.astype(np.uint16) * 257), PIXELS),
    "16-bit TIFF": (by_opencv(".tiff", PIXELS.astype(np.uint16) * 257), PIXELS),
    "float TIFF": (by_opencv(".tiff", (PIXELS / 255).astype(np.float32)), PIXELS),
    "RGBA PNG with EXIF": (with_exif("PNG", UPRIGHT, TRANSPARENT), PIXELS),
    "rotated PNG": (with_exif("PNG"), np.rot90(PIXELS, -1)),
    "rotated WebP": (with_exif("WEBP", lossless=True), np.rot90(PIXELS, -1)),
    "rotated TIFF": (
        encoded(PICTURE, "TIFF", tiffinfo={ORIENTATION: ROTATE_RIGHT}),
        np.rot90(PIXELS, -1),
    ),
    "1x1 PNG": (encoded(PICTURE.crop((0, 0, 1, 1)), "PNG"), PIXELS[:1, :1]),
}
LOSSY = {
    "RGB JPEG": (encoded(PICTURE, "JPEG", quality=98, subsampling=0), PIXELS),
    "grey JPEG": (encoded(PICTURE.convert("L"), "JPEG", quality=98, subsampling=0), grey(PICTURE)),
    "CMYK JPEG": (encoded(PICTURE.convert("CMYK"), "JPEG", quality=98), PIXELS),
    "rotated JPEG": (with_exif("JPEG", quality=98, subsampling=0), np.rot90(PIXELS, -1)),
}


def animated(kind, **options):
    frames = [Image.fromarray(np.roll(PIXELS, shift, 1)) for shift in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def png_of_size(width, height):
    """A PNG of a few hundred bytes that says that it is of any size."""
    content = KINDS["RGB PNG"][0]
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


BROKEN = "is broken or of an unknown format"
REFUSED = {
    "nothing": (b"", BROKEN),
    "text": (b"not an image", BROKEN),
    "a web page": (b"<html><body>404</body></html>", BROKEN),
    "a drawing": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>", BROKEN),
    "PNG's first bytes": (KINDS["RGB PNG"][0][:20], BROKEN),
    "half a PNG": (KINDS["RGB PNG"][0][: len(KINDS["RGB PNG"][0]) // 2], BROKEN),
    "half a JPEG": (LOSSY["RGB JPEG"][0][: len(LOSSY["RGB JPEG"][0]) // 2], BROKEN),
    "half a TIFF": (KINDS["RGB TIFF"][0][: len(KINDS["RGB TIFF"][0]) // 2], BROKEN),
    "half a WebP": (KINDS["RGB WebP"][0][: len(KINDS["RGB WebP"][0]) // 2], BROKEN),
    "half a BMP": (KINDS["RGB BMP"][0][: len(KINDS["RGB BMP"][0]) // 2], BROKEN),
    "a PNG of no height": (png_of_size(28, 0), BROKEN),
    "a decompression bomb": (
        png_of_size(60_000, 60_000),
        "60000x60000 pixels, more than max_pixels 134217728 allows",
    ),
    "animated PNG": (animated("PNG"), "several frames or pages"),
    "animated WebP": (animated("WEBP"), "several frames or pages"),
    "animated GIF": (animated("GIF"), "several frames or pages"),
    "TIFF of several pages": (animated("TIFF"), "several frames or pages"),
    "alpha and EXIF that turns it": (
        with_exif("PNG", picture=TRANSPARENT),
        "has alpha and EXIF that turns it",
    ),
    "transparent TIFF": (encoded(TRANSPARENT, "TIFF"), "is a TIFF file with transparent pixels"),
    "double TIFF": (by_opencv(".tiff", PIXELS / 255), "has values of type float64"),
    "NaN in a TIFF": (
        by_opencv(".tiff", np.full((4, 4, 3), np.nan, np.float32)),
        "holds NaN or infinite values",
    ),
    "float TIFF beyond 1": (
        by_opencv(".tiff", np.full((4, 4, 3), 9, np.float32)),
        "has float values outside 0..1",
    ),
}
