"""Range observers and searches."""

import pytest
import torch

from adabm_basicsr.quantization.adaptive import ActivationQuantizer, WeightQuantizer
from adabm_basicsr.quantization.fake_quantize import fake_quantize
from adabm_basicsr.quantization.observers import (
    OBSERVERS,
    MovingAverage,
    percentile_range,
    search_range,
    search_weight_range,
)


def error(x, ends, bits):
    return (fake_quantize(x, *ends, bits) - x).square().mean()


def test_moving_average_starts_at_the_first_value():
    average = MovingAverage()
    average.update(torch.tensor([1.0]))
    average.update(torch.tensor([2.0]))
    assert average.value.item() == pytest.approx(1.1)


def test_percentile_leaves_out_outliers_minmax_does_not():
    x = torch.cat([torch.rand(100_000), torch.tensor([1000.0, -1000.0])])
    assert OBSERVERS["minmax"](x, ActivationQuantizer(4)).tolist() == [-1000, 1000]
    low, high = percentile_range(x, ActivationQuantizer(4))
    assert -0.1 < low < 0.1 and 0.9 < high < 1.1


def test_search_finds_the_range_of_smallest_error():
    torch.manual_seed(0)
    x = torch.randn(5000)
    best = search_range(x, x.min(), x.max(), 3)
    candidates = [torch.stack([x.min(), x.max()]) * (1 - 0.01 * i) for i in range(100)]
    assert error(x, best, 3) <= min(error(x, ends, 3) for ends in candidates)
    assert best[1] < 0.9 * x.max()  # at 3 bits a normal distribution is worth clipping


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observers_give_an_ordered_range(observer):
    low, high = OBSERVERS[observer](torch.randn(2, 3, 16, 16), ActivationQuantizer(4))
    assert low < high


def test_weight_search_handles_weights_without_positive_values():
    assert search_weight_range(-torch.rand(4, 4), WeightQuantizer(4), 4).item() > 0
    assert search_weight_range(torch.zeros(4, 4), WeightQuantizer(4), 4).item() == 0
