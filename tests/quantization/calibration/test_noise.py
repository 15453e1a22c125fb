"""Squared errors of quantizers add up to what the network loses."""

import pytest
import torch
from conftest import photographs

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.calibration.noise import (
    add_up,
    mean_psnr,
    measure_errors,
    measure_gains,
    psnr_of,
)
from adabm_basicsr.quantization.measures.psnr import pixel_psnr, self_psnr

IMAGES = photographs(8, 24)


@pytest.mark.parametrize("spread", [0.2, 0.5, 3.0])
def test_rounding_of_pixels_counts_as_it_does_in_the_metric(spread):
    generator = torch.Generator().manual_seed(0)
    image = 0.1 + 0.8 * torch.rand(1, 3, 256, 256, generator=generator)
    error = torch.randn(image.shape, generator=generator) * spread / 255
    expected = pixel_psnr(image + error, image)
    assert psnr_of((spread / 255) ** 2) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("w_bits", "a_bits"), [(8, 8), (4, 8), (4, 4)])
def test_errors_add_up_to_what_the_network_loses(tiny, w_bits, a_bits):
    options = {"w_bits": w_bits, "a_bits": a_bits, "recipe": "fast", "fully_quantized": True}
    net = calibrate(quantize(tiny, IMAGES[:1], **options), [IMAGES])
    errors = measure_errors(net, IMAGES, measure_gains(net, IMAGES))
    assert mean_psnr(add_up(errors.values())) == pytest.approx(self_psnr(net, IMAGES), abs=1.5)
