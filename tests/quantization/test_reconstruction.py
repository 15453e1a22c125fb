"""Ranges and rounding are fitted to each layer's output, and to each level of the image."""

import pytest
import torch

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.calibration import representative
from adabm_basicsr.quantization.reconstruction import round_compensated

GENERATOR = torch.Generator().manual_seed(0)
SIMPLE = 0.4 + 0.1 * torch.rand(12, 3, 16, 16, generator=GENERATOR)
COMPLEX = torch.rand(6, 3, 16, 16, generator=GENERATOR).round()


def test_compensated_rounding_errs_less_than_rounding_to_the_nearest():
    rows = torch.randn(1, 4, 30, generator=GENERATOR)
    columns = torch.randn(1, 6, 400, generator=GENERATOR)
    columns = torch.randn(1, 30, 6, generator=GENERATOR) @ columns  # inputs that go together
    steps = rows.abs().amax(2, keepdim=True) / 7
    rounded = round_compensated(rows.clone(), columns @ columns.transpose(1, 2), steps, bits=4)
    nearest = (rows / steps).round().clamp(-8, 7) * steps
    levels = rounded / steps
    torch.testing.assert_close(levels, levels.round())

    def error(weights):
        return ((weights - rows) @ columns).square().mean()

    assert error(rounded) < 0.5 * error(nearest)


@pytest.mark.parametrize("bits", [4, 8])
def test_complex_images_have_wider_ranges(tiny, bits):
    options = {"recipe": "best", "w_bits": bits, "a_bits": bits, "ingredients": {"image_percentiles": [0.0, 0.6]}}
    net = calibrate(quantize(tiny, SIMPLE[:1], **options), [torch.cat([SIMPLE, COMPLEX])])
    assert net.image_mapping(COMPLEX).min() == 1
    factors = [q.level_ranges[2].item() for q in net.activation_quantizers().values()]
    assert sum(factor > 1.1 for factor in factors) > len(factors) / 2, factors


def test_no_image_gives_up_bits_where_all_layers_have_eight(tiny):
    images = torch.cat([SIMPLE, COMPLEX])
    net = calibrate(quantize(tiny, images[:1], recipe="best", w_bits=8, a_bits=8), [images])
    with torch.no_grad():
        assert (net(images, details=True).bits == 8).all()


def test_representative_images_span_what_there_is():
    chosen = representative([SIMPLE, COMPLEX], count=5)
    assert len(chosen) == 5
    assert sum(any(torch.equal(image, other) for other in COMPLEX) for image in chosen) == 2
    assert len(representative([SIMPLE], count=100)) == len(SIMPLE)
