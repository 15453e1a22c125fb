"""Test sets are found in both layouts."""

import torch
from conftest import write_images
from image_sets import find_set, to_bgr


def test_a_set_in_basicsrs_layout(tmp_path):
    write_images(tmp_path / "Set5" / "LRbicx2", [(8, 10)] * 2)
    write_images(tmp_path / "Set5" / "GTmod12", [(16, 20)] * 2)
    pairs = list(find_set(tmp_path, "Set5", 2).pairs())
    assert [(image.shape, truth.shape) for image, truth in pairs] == [
        ((1, 3, 8, 10), (16, 20, 3))
    ] * 2


def test_a_set_as_it_is_published(tmp_path):
    """Names of LR images end in their scale, and HR images may have some pixels more."""
    hr = write_images(tmp_path / "B100" / "HR", [(17, 22)])
    lr = write_images(tmp_path / "B100" / "LR_bicubic" / "X2", [(8, 11)])
    (lr / "img_000.png").rename(lr / "img_000x2.png")
    found = find_set(tmp_path, "B100", 2)
    [(image, truth)] = found.pairs()
    assert image.shape == (1, 3, 8, 11)
    assert truth.shape == (16, 22, 3)
    assert hr == found.hr


def test_a_set_that_is_not_there(tmp_path):
    write_images(tmp_path / "Urban100" / "LRbicx4", [(8, 10)])
    assert find_set(tmp_path, "Urban100", 4) is None


def test_images_for_metrics_are_bgr_in_0_to_255():
    image = torch.tensor([0.0, 0.5, 2.0]).view(1, 3, 1, 1)
    assert to_bgr(image).tolist() == [[[255, 128, 0]]]
