"""Low-resolution images as BasicSR and MATLAB make them."""

import cv2
import numpy as np
import pytest
from conftest import write_images
from faults import FORKS, kill_this_process

from adabm_basicsr.data import prepare as prepare_module
from adabm_basicsr.data.prepare import crop_to_scale, downscale, prepare
from adabm_basicsr.errors import AdaBMError

IMAGES = ["img_000.png", "img_001.png", "img_002.png"]


def prepare_and_die(hr, out, mod):
    """Kill this process where the third image is read."""
    original, read = prepare_module.read_image, []

    def read_image(*args, **kwargs):
        read.append(args)
        if len(read) == 3:
            kill_this_process()
        return original(*args, **kwargs)

    prepare_module.read_image = read_image
    prepare(hr, 2, out, mod)


@pytest.mark.shared
@pytest.mark.parametrize("scale", [2, 4])
def test_equals_the_bicubic_images_of_set5(shared, scale):
    for path in sorted((shared / "data/Set5/GTmod12").glob("*.png")):
        small = downscale(cv2.imread(str(path)), scale)
        expected = cv2.imread(str(shared / f"data/Set5/LRbicx{scale}" / path.name))
        assert np.abs(small.astype(int) - expected).max() <= 1
        assert np.abs(small.astype(int) - expected).mean() < 0.01


@pytest.mark.parametrize(("scale", "least"), [(1, 1), (2, 4), (3, 6), (4, 8), (7, 14), (8, 16)])
def test_the_smallest_images(scale, least):
    image = np.zeros((least, least + 1, 3), np.uint8)
    small = downscale(crop_to_scale(image, "image", scale), scale)
    assert small.shape[0] == least // scale
    with pytest.raises(AdaBMError, match=f"image has {least + 1}x{least - 1} pixels"):
        crop_to_scale(image[1:], "image", scale)


def test_existing_files_are_not_overwritten(tmp_path):
    hr, out = write_images(tmp_path / "hr", [(32, 32)]), write_images(tmp_path / "lr", [(8, 8)])
    with pytest.raises(AdaBMError, match=r"--out: .*lr exists and is not an empty folder"):
        prepare(hr, 4, out)


def test_one_folder_for_both_is_refused(tmp_path):
    with pytest.raises(AdaBMError, match="is the same as --out"):
        prepare(write_images(tmp_path / "hr", [(32, 32)]), 4, tmp_path / "a", mod=tmp_path / "a")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda hr: cv2.imwrite(str(hr / "img_000.jpg"), np.zeros((8, 8, 3), np.uint8)),
            "would both become img_000.png",
        ),
        (lambda hr: (hr / "x.png").write_bytes(b"no"), "x.png is broken"),
        (
            lambda hr: cv2.imwrite(str(hr / "y.png"), np.zeros((7, 9, 3), np.uint8)),
            r"y\.png has 9x7 pixels; at scale 4 it has to have at least 8x8",
        ),
        (lambda hr: [path.unlink() for path in hr.iterdir()], "holds no images"),
    ],
)
def test_what_cannot_be_prepared_is_named(tmp_path, spoil, message):
    hr = write_images(tmp_path / "hr", [(32, 32)])
    spoil(hr)
    with pytest.raises(AdaBMError, match=message):
        prepare(hr, 4, tmp_path / "lr", mod=tmp_path / "mod")
    assert not (tmp_path / "lr").exists()
    assert not (tmp_path / "mod").exists()


@pytest.mark.parametrize("name", ["a.b.png", "é.png"])
def test_names_that_make_no_key_of_an_lmdb(tmp_path, name):
    hr = write_images(tmp_path / "hr", [(32, 32)])
    (hr / "img_000.png").rename(hr / name)
    with pytest.raises(
        AdaBMError, match=f"{name} makes no key of an LMDB; name it in ASCII, with one dot"
    ):
        prepare(hr, 4, tmp_path / "lr.lmdb")


@pytest.mark.parametrize("name", ["lr", "lr.lmdb"])
def test_a_run_that_was_killed_is_done_anew(tmp_path, name):
    write_images(tmp_path / "hr", [(32, 32)] * 3)
    out, mod = tmp_path / name, tmp_path / "mod"
    child = FORKS.Process(target=prepare_and_die, args=(tmp_path / "hr", out, mod))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    assert [path for folder in (out, mod) for path in folder.glob("[!.]*")] == []
    prepare(tmp_path / "hr", 2, out, mod)
    made = {"lr": IMAGES, "lr.lmdb": ["data.mdb", "lock.mdb", "meta_info.txt"]}[name]
    assert sorted(path.name for path in out.iterdir()) == made
    assert sorted(path.name for path in mod.iterdir()) == IMAGES


def test_larger_images_than_allowed(tmp_path):
    write_images(tmp_path / "hr", [(32, 32)])
    with pytest.raises(
        AdaBMError, match=r"img_000\.png has 32x32 pixels, more than max_pixels 1000 allows"
    ):
        prepare(tmp_path / "hr", 2, tmp_path / "lr", max_pixels=1000)
