"""What quantizers see of the calibration images."""

import pytest
import torch
from torch import nn

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.calibration import statistics
from adabm_basicsr.quantization.calibration.statistics import observe


def some_images():
    torch.manual_seed(0)
    return torch.rand(6, 3, 12, 12) * torch.rand(6, 1, 1, 1)


@pytest.mark.parametrize("recipe", ["paper", "static"])
def test_a_batch_that_is_run_in_parts_counts_as_one(tiny, monkeypatch, recipe):
    images = some_images()
    states = []
    for pixels in (1, 10**6):
        monkeypatch.setattr(statistics, "PIXELS_AT_ONCE", pixels)
        net = quantize(tiny, images[:1], w_bits=4, a_bits=4, recipe=recipe)
        states.append(calibrate(net, images.split(3)).state_dict())
    torch.testing.assert_close(*states)


def test_statistics_are_those_of_the_layers_inputs():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 3, padding=1)]
    images = some_images()
    net = quantize(nn.Sequential(*layers), images[:1], recipe="paper", body=["1"])
    observed, batches = observe(net, images.split(3))
    assert [len(batch) for batch in batches] == [3, 3]
    with torch.no_grad():
        first, second = layers[0](images).split(3)
    [of_body] = observed
    ranges = [torch.stack(torch.aminmax(x)) for x in (first, second)]
    torch.testing.assert_close(of_body.range(), 0.9 * ranges[0] + 0.1 * ranges[1])
    deviations = [x.flatten(1).std(1).mean() for x in (first, second)]
    torch.testing.assert_close(of_body.sensitivity(), torch.stack(deviations).mean())


def test_ranges_hold_all_batches_where_a_tensor_has_one_scale():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 3, padding=1)]
    images = some_images()
    options = {"w_bits": 8, "a_bits": 8, "recipe": "fast", "body": ["1"]}
    net = quantize(nn.Sequential(*layers), images[:1], engine="ncnn", **options)
    [of_body], _ = observe(net, images.split(2))
    with torch.no_grad():
        torch.testing.assert_close(of_body.range(), torch.stack(layers[0](images).aminmax()))


@pytest.mark.parametrize(
    ("x", "are_pixels"),
    [
        (torch.arange(256) / 255, True),
        (torch.arange(256) / 256, False),
        (torch.tensor([0.0, 1.0]), False),
        (torch.tensor([-3.0, 4.0]) / 255, False),
        (torch.tensor([4.0, 300.0]) / 255, False),
    ],
)
def test_pixels_are_told_from_other_values(x, are_pixels):
    layers = [nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)]
    images = x.float().view(-1, 1, 1, 1)
    net = quantize(nn.Sequential(*layers), images[:1], fully_quantized=True)
    (first, second), _ = observe(net, [images])
    assert first.pixels == are_pixels
    assert not second.pixels
