"""Image files of every kind, whole and broken."""

import io
import os
import zlib

import cv2
import numpy as np
import pytest
from conftest import photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adabm_basicsr import AdaBMError
from adabm_basicsr.data.headers import MAX_PIXELS, check_max_pixels
from adabm_basicsr.data.images import decode_image, decode_pixels, list_images, read_image, read_pixels, to_unit_range

PIXELS = photograph(20, 28)  # RGB here
PICTURE = Image.fromarray(PIXELS)
PALETTE = PICTURE.quantize(16)
TRANSPARENT = Image.fromarray(np.dstack([PIXELS, np.arange(560, dtype=np.uint8).reshape(20, 28)]))
UPRIGHT, ROTATE_RIGHT = 1, 6  # EXIF's orientation of an image as it is, and of one that is to be turned by a quarter
ORIENTATION = 0x112


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def by_opencv(suffix, pixels):
    return cv2.imencode(suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


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
    "palette PNG with transparency": (encoded(PALETTE, "PNG", transparency=3), np.asarray(PALETTE.convert("RGB"))),
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
    "rotated TIFF": (encoded(PICTURE, "TIFF", tiffinfo={ORIENTATION: ROTATE_RIGHT}), np.rot90(PIXELS, -1)),
    "1x1 PNG": (encoded(PICTURE.crop((0, 0, 1, 1)), "PNG"), PIXELS[:1, :1]),
}
LOSSY = {
    "RGB JPEG": (encoded(PICTURE, "JPEG", quality=98, subsampling=0), PIXELS),
    "grey JPEG": (encoded(PICTURE.convert("L"), "JPEG", quality=98, subsampling=0), grey(PICTURE)),
    "CMYK JPEG": (encoded(PICTURE.convert("CMYK"), "JPEG", quality=98), PIXELS),
    "rotated JPEG": (with_exif("JPEG", quality=98, subsampling=0), np.rot90(PIXELS, -1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_it_is_shown(kind):
    content, expected = KINDS[kind]
    image = to_unit_range(decode_image(content, kind))
    np.testing.assert_allclose(image * 255, expected, atol=1e-3)
    assert decode_image(content, kind, channels=1).shape == (*expected.shape[:2], 1)


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_kinds_are_close(kind):
    content, expected = LOSSY[kind]
    assert np.abs(decode_image(content, kind).astype(float) - expected).mean() < 3


def test_alpha_is_kept_where_it_is_asked_for(tmp_path):
    (tmp_path / "x.png").write_bytes(KINDS["RGBA PNG"][0])
    pixels = read_pixels(tmp_path / "x.png")
    assert np.array_equal(pixels[..., 2::-1], PIXELS) and np.array_equal(
        pixels[..., 3], np.asarray(TRANSPARENT)[..., 3]
    )
    assert decode_pixels(KINDS["grey PNG"][0], "x").shape == (20, 28, 1)


def test_the_content_counts_not_the_name(tmp_path):
    (tmp_path / "photo.png").write_bytes(LOSSY["RGB JPEG"][0])
    assert np.array_equal(read_image(tmp_path / "photo.png"), decode_image(LOSSY["RGB JPEG"][0], "x"))


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
    "a decompression bomb": (png_of_size(60_000, 60_000), "60000x60000 pixels, more than max_pixels 134217728 allows"),
    "animated PNG": (animated("PNG"), "several frames or pages"),
    "animated WebP": (animated("WEBP"), "several frames or pages"),
    "animated GIF": (animated("GIF"), "several frames or pages"),
    "TIFF of several pages": (animated("TIFF"), "several frames or pages"),
    "alpha and EXIF that turns it": (with_exif("PNG", picture=TRANSPARENT), "has alpha and EXIF that turns it"),
    "transparent TIFF": (encoded(TRANSPARENT, "TIFF"), "is a TIFF file with transparent pixels"),
    "double TIFF": (by_opencv(".tiff", PIXELS / 255), "has values of type float64"),
    "NaN in a TIFF": (by_opencv(".tiff", np.full((4, 4, 3), np.nan, np.float32)), "holds NaN or infinite values"),
    "float TIFF beyond 1": (by_opencv(".tiff", np.full((4, 4, 3), 9, np.float32)), "has float values outside 0..1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_and_why(kind):
    content, text = REFUSED[kind]
    with pytest.raises(AdaBMError, match=f"image x.png .*{text}"):
        decode_image(content, "x.png")


def test_a_limit_may_be_raised_or_lowered():
    content = KINDS["RGB PNG"][0]
    assert decode_image(content, "x", max_pixels=560).shape == (20, 28, 3)
    with pytest.raises(AdaBMError, match="28x20 pixels, more than max_pixels 559 allows"):
        decode_image(content, "x", max_pixels=559)
    assert check_max_pixels("max_pixels", None) == MAX_PIXELS
    for wrong in (0, 2**30 + 1, True, "many", 1.5):
        with pytest.raises(AdaBMError, match=r"max_pixels: .* is out of range; valid: 1 to 1073741824"):
            check_max_pixels("max_pixels", wrong)


def test_a_preview_in_a_tiff_is_no_page():
    preview = PICTURE.resize((7, 5))
    preview.encoderinfo = {"tiffinfo": {254: 1}}  # NewSubfileType: reduced
    content = encoded(PICTURE, "TIFF", save_all=True, append_images=[preview])
    assert np.array_equal(decode_image(content, "x"), PIXELS)


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "folder.png", "device.png"):
        with pytest.raises(AdaBMError, match=f"image .*{name} cannot be read: it is no file"):
            read_image(tmp_path / name)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(AdaBMError, match=r"dangling\.png cannot be read: No such file"):
        read_image(tmp_path / "dangling.png")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(KINDS["RGB PNG"][0])
    (tmp_path / "lr").mkdir()
    (tmp_path / "lr" / "link.png").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in list_images(tmp_path / "lr")] == ["link.png"]
    assert np.array_equal(read_image(tmp_path / "lr" / "link.png"), PIXELS)


def changed(content, changes, length):
    content = bytearray(content)
    for place, value in changes:
        content[place % len(content)] = value
    return bytes(content[: max(int(length * len(content)), 1)])


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)


@given(st.sampled_from([*KINDS, *LOSSY]), CHANGES, st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 0.1]))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_gives_an_image_or_says_so(kind, changes, length):
    content, _ = {**KINDS, **LOSSY}[kind]
    try:
        image = to_unit_range(decode_image(changed(content, changes, length), "x", max_pixels=10**6))
    except AdaBMError as error:
        assert str(error).startswith("image x ")
    else:
        assert image.ndim == 3 and image.shape[2] == 3 and np.isfinite(image).all()
        assert image.min() >= 0 and image.max() <= 1
