"""Calibration in parts."""

import pytest
import torch

from adabm_basicsr.quantization import calibration
from adabm_basicsr.quantization.api import quantize


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
