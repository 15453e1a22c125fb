"""Pictures that are kept with a run."""

import numpy as np
import pytest
import torch

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.runs.pictures import PictureStore, to_pixels

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


@pytest.fixture
def store(tmp_path):
    made = PictureStore(tmp_path)
    made.keep("Set5", "static", "baby", PIXELS)
    made.keep_metrics("Set5", "static", "key", {"psnr": 30.0}, {"images": []})
    return made


def test_pictures_come_back_as_they_were(store):
    assert np.array_equal(store.read("Set5", "static", "baby"), PIXELS)
    assert store.read("Set5", "static", "bird") is None
    assert store.sets() == ["Set5"]
    assert store.names("Set5", "static") == ["baby"]


def test_metrics_are_those_of_the_key(store):
    assert store.metrics("Set5", "static") == {"psnr": 30.0}
    assert store.metrics("Set5", "static", "key") == {"psnr": 30.0}
    assert store.metrics("Set5", "static", "another") is None
    assert store.metrics("Set5", "adaptive") is None
    assert store.facts("Set5", "static") == {"images": []}


def test_metrics_go_with_their_pictures(store):
    store.path("Set5", "static", "baby").unlink()
    assert store.metrics("Set5", "static") is None
    assert store.facts("Set5", "static") is None


def test_damaged_metrics_are_named(store):
    (store.folder / "Set5/static/figures.json").write_text("{")
    with pytest.raises(AdaBMError, match=r"figures\.json cannot be read"):
        store.metrics("Set5", "static")


def test_pixels_are_rounded_and_clipped():
    image = torch.tensor([-1.0, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 2.0]).view(1, 1, 2, 3)
    assert to_pixels(image)[..., 0].tolist() == [[0, 0, 0], [1, 255, 255]]
