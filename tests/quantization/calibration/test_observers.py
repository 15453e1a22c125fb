"""Range observers and searches."""

import pytest
import torch

from adabm_basicsr.quantization.calibration.observers import (
    FIND_RANGE,
    moving_average,
    search_range,
    search_weight_range,
)
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer


def error(x, ends, bits):
    return (fake_quantize(x, *ends, bits) - x).square().mean()


def observed(observer, *parts):
    """What the observer finds for a batch that comes in parts, at 4 bits."""
    found = FIND_RANGE[observer]
    kept = torch.cat([found.keep(part) for part in parts])
    return found.find_range(kept, ActivationQuantizer(4))


def test_moving_average_starts_at_the_first_value():
    average = moving_average([torch.tensor([1.0]), torch.tensor([2.0])])
    assert average.item() == pytest.approx(1.1)


def test_percentile_leaves_out_outliers_minmax_does_not():
    x = torch.cat([torch.rand(100_000), torch.tensor([1000.0, -1000.0])])
    assert observed("minmax", x).tolist() == [-1000, 1000]
    low, high = observed("percentile", x)
    assert -0.1 < low < 0.1
    assert 0.9 < high < 1.1


def test_search_finds_the_range_of_smallest_error():
    torch.manual_seed(0)
    x = torch.randn(5000)
    best = search_range(x, x.min(), x.max(), 3)
    candidates = [torch.stack([x.min(), x.max()]) * (1 - 0.01 * i) for i in range(100)]
    assert error(x, best, 3) <= min(error(x, ends, 3) for ends in candidates)
    assert best[1] < 0.9 * x.max()  # at 3 bits a normal distribution is worth clipping


@pytest.mark.parametrize("observer", FIND_RANGE)
def test_observers_give_an_ordered_range(observer):
    low, high = observed(observer, torch.randn(2, 3, 16, 16))
    assert low < high


@pytest.mark.parametrize("observer", FIND_RANGE)
def test_a_batch_in_parts_gives_the_range_of_the_whole(observer):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    tolerance = 0.2 if observer == "omse" else 0.02  # the minimum that it searches is flat
    torch.testing.assert_close(
        observed(observer, *x.split(1)), observed(observer, x), atol=tolerance, rtol=0
    )


def test_parts_do_not_add_outliers_to_a_percentile():
    torch.manual_seed(0)
    x = torch.randn(64, 4000)
    x[:, 0] = 100.0  # one value in 4000 of each part
    torch.testing.assert_close(
        observed("percentile", *x.split(1)), observed("percentile", x), atol=0.1, rtol=0
    )


def test_weight_search_handles_weights_without_positive_values():
    assert search_weight_range(-torch.rand(4, 4), WeightQuantizer(4), 4).item() > 0
    assert search_weight_range(torch.zeros(4, 4), WeightQuantizer(4), 4).item() == 0


def test_two_bits_of_weights_find_their_best_range():
    """It is less than half as wide as the largest weight of many asks for."""
    weight = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    quantizer = WeightQuantizer(2, channels=2, integer=True)
    upper = search_weight_range(weight, quantizer, 2)
    assert (upper < weight.abs().amax(1) * 0.75).all()

    def errors(factor):
        end = factor * upper.unsqueeze(1)
        quantized = fake_quantize(weight, -end, end, 2, integer=True)
        return (quantized - weight).square().mean(1)

    for factor in (0.7, 0.85, 1.2, 1.5):
        assert (errors(factor) > errors(1)).all()
