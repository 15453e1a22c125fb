"""The optimised recipe ``paper`` computes what the plain one does, and its cost is measured."""

import calibration_cost as benchmark
import pytest
import torch
from naive_paper import NaivePaper

from adabm_basicsr import quantize
from adabm_basicsr.quantization.calibration.calibrate import calibrate
from adabm_basicsr.quantization.calibration.clipping import clip
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings

pytestmark = pytest.mark.numeric

SMALL = {"images": 4, "size": 16, "depth": 2, "steps": 1, "calibration_batch": 2}


def learned(net, plain):
    """Pairs of what both learn."""
    activations = net.activation_quantizers().values()
    weights = net.weight_quantizers().values()
    for activation, weight, layer in zip(activations, weights, plain.layers, strict=True):
        yield activation.lower, layer.lower
        yield activation.upper, layer.upper
        yield weight.upper, layer.weight_upper
        if activation.adaptive:
            yield activation.layer_factor, layer.factor
    lower, upper = plain.thresholds
    yield net.image_mapping.lower, lower
    yield net.image_mapping.upper, upper


def assert_alike(net, plain, rtol=0.001):
    """Compare, and begin the next step from the same.

    A value that rounds the other way must not add up.
    """
    for ours, theirs in learned(net, plain):
        torch.testing.assert_close(ours, theirs, atol=0.002, rtol=rtol)
        ours.data.copy_(theirs)


def test_what_is_optimised_stays_what_it_was():
    """Everything learned and every loss, step by step, on images that get several bits."""
    network = benchmark.build(benchmark.Setting(depth=2))
    torch.manual_seed(1)
    images = torch.rand(6, 3, 24, 24) * torch.rand(6, 1, 1, 1)
    net = quantize(network, images[:1], w_bits=4, a_bits=4, recipe="paper", fully_quantized=True)
    plain = NaivePaper(network, net)
    plain.calibrate(list(images.split(3)))
    calibrate(net, images.split(3))
    assert_alike(net, plain)
    plain.clip(images[:2])
    clip(net, images[:2])
    # Neighbours in the search may err alike.
    assert_alike(net, plain, rtol=0.006)
    tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=2)
    for iteration in range(1, 9):
        batch = images[iteration % 5 : iteration % 5 + 2]
        found = {name: float(loss) for name, loss in tuner.step(batch, iteration).items()}
        expected = plain.step(batch, (iteration - 1) // 2)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=0.005)
        assert_alike(net, plain)


@pytest.mark.parametrize("recipe", [benchmark.NAIVE, *benchmark.RECIPES])
def test_every_phase_is_measured(recipe):
    found = benchmark.measure(benchmark.Setting(recipe=recipe, **SMALL))
    preset = benchmark.RECIPES["paper" if recipe == benchmark.NAIVE else recipe]
    phases = ["calibration"]
    if preset.calibration.clip:
        phases.append("clipping")
    if preset.finetuning.fixed_crops:
        phases.append("teacher")
    phases += preset.finetuning.phases
    assert list(found["units"]) == phases
    assert found["total_units"] == pytest.approx(sum(found["units"].values()))
    assert found["peak_bytes"] > 1e8
    assert recipe in benchmark.table_of_costs([found])


def test_slope_is_the_exponent():
    assert benchmark.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
