"""Calibration in parts."""

import copy

import pytest
import torch

from adabm_basicsr.quantization.api import quantize
from adabm_basicsr.quantization.calibration import calibrate as calibration
from adabm_basicsr.quantization.finetuning.finetune import finetune


@pytest.mark.parametrize("recipe", ["paper", "static"])
def test_a_batch_that_is_run_in_parts_counts_as_one(tiny, monkeypatch, recipe):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 12, 12) * torch.rand(6, 1, 1, 1)
    states = []
    for pixels in (1, 10**6):
        monkeypatch.setattr(calibration, "PIXELS_AT_ONCE", pixels)
        net = quantize(tiny, images[:1], w_bits=4, a_bits=4, recipe=recipe)
        states.append(calibration.calibrate(net, images.split(3)).state_dict())
    torch.testing.assert_close(*states)


@pytest.mark.parametrize("recipe", ["best", "fast", "paper"])
def test_calibrating_again_forgets_what_was_found_before(tiny, recipe):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 12, 12) * torch.rand(6, 1, 1, 1)
    net = quantize(tiny, images[:1], w_bits=4, a_bits=4, recipe=recipe)
    first = copy.deepcopy(calibration.calibrate(net, [images]).state_dict())
    finetune(
        calibration.calibrate(net, [images.flip(2) * 0.3]), [images] * 4, iterations_per_epoch=1
    )
    again = calibration.calibrate(net, [images]).state_dict()
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_plain_weights_in_a_calibrated_network_are_calibrated_like_in_a_new_one(tiny):
    torch.manual_seed(0)
    images, weights = torch.rand(6, 3, 12, 12), copy.deepcopy(tiny.state_dict())
    new, used = (quantize(tiny, images[:1], w_bits=4, a_bits=4) for _ in range(2))
    calibration.calibrate(used, [images * 0.3])
    used.load_state_dict(weights)
    states = [calibration.calibrate(net, [images]).state_dict() for net in (new, used)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
