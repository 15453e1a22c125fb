"""Calibration finds the same whatever was found before."""

import copy

import pytest
import torch

from adabm_basicsr.quantization.api import quantize
from adabm_basicsr.quantization.calibration.calibrate import calibrate
from adabm_basicsr.quantization.finetuning.finetune import finetune


@pytest.mark.parametrize("recipe", ["best", "fast", "paper"])
def test_calibrating_again_forgets_what_was_found_before(tiny, recipe):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 12, 12) * torch.rand(6, 1, 1, 1)
    net = quantize(tiny, images[:1], w_bits=4, a_bits=4, recipe=recipe)
    first = copy.deepcopy(calibrate(net, [images]).state_dict())
    calibrate(net, [images.flip(2) * 0.3])
    finetune(net, [images] * 4, iterations_per_epoch=1)
    again = calibrate(net, [images]).state_dict()
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_plain_weights_in_a_calibrated_network_are_calibrated_like_in_a_new_one(tiny):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 12, 12)
    weights = copy.deepcopy(tiny.state_dict())
    new = quantize(tiny, images[:1], w_bits=4, a_bits=4)
    used = quantize(tiny, images[:1], w_bits=4, a_bits=4)
    calibrate(used, [images * 0.3])
    used.load_state_dict(weights)
    expected = calibrate(new, [images]).state_dict()
    again = calibrate(used, [images]).state_dict()
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
