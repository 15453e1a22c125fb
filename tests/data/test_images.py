"""Image files of every kind, whole and broken."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import KINDS, LOSSY, PICTURE, PIXELS, REFUSED, TRANSPARENT, encoded

from adabm_basicsr import AdaBMError
from adabm_basicsr.data.headers import MAX_PIXELS, check_max_pixels
from adabm_basicsr.data.images import (
    decode_image,
    decode_pixels,
    list_images,
    read_image,
    read_pixels,
    to_unit_range,
)


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
    assert np.array_equal(pixels[..., 2::-1], PIXELS)
    assert np.array_equal(pixels[..., 3], np.asarray(TRANSPARENT)[..., 3])
    assert decode_pixels(KINDS["grey PNG"][0], "x").shape == (20, 28, 1)


def test_the_content_counts_not_the_name(tmp_path):
    (tmp_path / "photo.png").write_bytes(LOSSY["RGB JPEG"][0])
    assert np.array_equal(
        read_image(tmp_path / "photo.png"), decode_image(LOSSY["RGB JPEG"][0], "x")
    )


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
        with pytest.raises(
            AdaBMError, match=r"max_pixels: .* is out of range; valid: 1 to 1073741824"
        ):
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
    with pytest.raises(AdaBMError, match=r"dangling\.png is a link to .*gone\.png, which does not"):
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


@given(
    st.sampled_from([*KINDS, *LOSSY]), CHANGES, st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 0.1])
)
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_gives_an_image_or_says_so(kind, changes, length):
    content, _ = {**KINDS, **LOSSY}[kind]
    try:
        image = to_unit_range(
            decode_image(changed(content, changes, length), "x", max_pixels=10**6)
        )
    except AdaBMError as error:
        message = str(error)
        assert message.startswith("image x ")
    else:
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1
