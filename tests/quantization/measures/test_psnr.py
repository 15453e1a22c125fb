"""PSNR between images, rounded to 8 bits."""

import pytest
import torch

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.measures.psnr import pixel_psnr, self_psnr

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def test_psnr_is_that_of_whole_grey_levels():
    image = torch.full((1, 3, 4, 4), 100 / 255)
    other = image + 2 / 255
    assert pixel_psnr(image, other) == pytest.approx(20 * torch.tensor(255 / 2).log10().item())
    assert (
        pixel_psnr(image, image + 0.4 / 255)
        == pixel_psnr(image, image)
        == pytest.approx(148.13, abs=0.01)
    )
    assert pixel_psnr(image + 2, image + 3) == pixel_psnr(image, image)


def test_psnr_of_a_batch_is_the_mean_over_its_images():
    image = torch.full((1, 3, 4, 4), 0.5)
    others = [image + 0.1, image + 0.2]
    single = [pixel_psnr(image, other) for other in others]
    both = pixel_psnr(image.expand(2, -1, -1, -1), torch.cat(others))
    assert both == pytest.approx(sum(single) / 2)


def test_more_bits_have_a_higher_self_psnr(tiny):
    found = []
    for bits in (4, 6, 8):
        net = quantize(tiny, IMAGES[:1], w_bits=bits, a_bits=bits, recipe="static")
        found.append(self_psnr(calibrate(net, [IMAGES]), IMAGES))
    assert found == sorted(found)
