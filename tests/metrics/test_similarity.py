"""Self-PSNR, LPIPS and what a validation set can have of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photograph

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.metrics.choice import split_metrics

ASKED = {
    "psnr": {"type": "calculate_psnr", "crop_border": 2},
    "own": {"type": "calculate_self_psnr"},
    "niqe": {"type": "calculate_niqe", "crop_border": 4},
}


def judged(image, other, **options):
    from basicsr.metrics import calculate_metric

    return calculate_metric({"img": image, "img2": other}, options)


@pytest.mark.parametrize("grey", [False, True])
def test_self_psnr_is_over_all_channels_and_pixels(grey):
    image = photograph(20, 30)[..., 0] if grey else photograph(20, 30)
    other = image.copy()
    other.flat[0] = 255 - other.flat[0]
    mse = (float(other.flat[0]) - float(image.flat[0])) ** 2 / image.size
    expected = 10 * np.log10(255**2 / mse)
    assert judged(image, other, type="calculate_self_psnr") == pytest.approx(expected, abs=1e-4)


def test_sets_without_truth_keep_what_needs_none():
    judge, own = split_metrics(ASKED, has_truth=False)
    assert list(judge) == ["niqe"]
    assert list(own) == ["own"]
    assert list(split_metrics(ASKED, has_truth=True)[0]) == ["psnr", "niqe"]


def test_self_psnr_of_a_run_is_that_of_the_python_api(workspace):
    from adabm_basicsr import load_network
    from adabm_basicsr.data.images import read_image, to_unit_range
    from adabm_basicsr.quantization.measures.psnr import self_psnr

    workspace.train()
    metrics = {
        "self": {"type": "calculate_self_psnr"},
        **workspace.test_options()["val"]["metrics"],
    }
    workspace.test(val__metrics=metrics)
    found = json.loads(Path("results/tiny_test/metrics.json").read_text())["Val"]
    net = load_network("experiments/tiny/models/net_g_latest.pth")
    images = [read_image(path) for path in sorted(Path("val/lq").iterdir())]
    images = [torch.from_numpy(to_unit_range(image)).permute(2, 0, 1)[None] for image in images]
    assert found["self"] == pytest.approx(
        np.mean([self_psnr(net, image) for image in images]), abs=1e-3
    )
    assert 3 <= found["fab"] <= 5  # the full-precision pass isn't counted


def test_lpips_loads_its_weights_and_distinguishes_images(tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        squeezenet1_1().state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    options = {"type": "calculate_lpips", "crop_border": 2, "net": "squeeze"}
    image = photograph(70, 80)
    border_spoiled, spoiled = image.copy(), image.copy()
    border_spoiled[:2] = 0
    spoiled[20:40] = 0
    assert judged(image, border_spoiled, **options) == pytest.approx(0, abs=1e-6)
    assert judged(image, spoiled, **options) > 1e-4


def test_unknown_network_of_lpips():
    with pytest.raises(
        AdaBMError, match="calculate_lpips: net: 'resnet' is unknown; valid: alex, vgg, squeeze"
    ):
        judged(
            photograph(70, 80),
            photograph(70, 80),
            type="calculate_lpips",
            crop_border=0,
            net="resnet",
        )
