"""How far an iteration moves parameters, and what each phase trains."""

import pytest
import torch
from conftest import TINY_EDSR, photographs
from torch import nn

from adabm_basicsr import FinetuneSettings, calibrate, quantize
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.finetuning.finetune import Finetuner
from adabm_basicsr.quantization.finetuning.optimizer import (
    MAX_PROMISE,
    RelativeAdam,
    parameter_groups,
)
from adabm_basicsr.quantization.recipes import PHASES, RELATIVE_RATES


@pytest.mark.parametrize("rate", [0.001, 0.1, 10.0])
def test_no_iteration_promises_to_take_more_than_a_share_of_the_loss_away(rate):
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]).double())
    unit = torch.tensor([1.0, 0.1, 10.0]).double()
    optimizer = RelativeAdam([{"params": [weight], "units": [unit]}], lr=rate)
    before = weight.detach().clone()
    squares = weight.square().sum()
    squares.backward()
    loss = float(squares.detach())
    optimizer.step(loss=loss)
    moved = weight.detach() - before
    promised = -float((weight.grad * moved).sum())
    # Adam's first move.
    whole = rate * unit * -before.sign()
    assert promised <= MAX_PROMISE * loss * (1 + 1e-5)
    # Shortened, not turned.
    torch.testing.assert_close(moved / whole, (moved / whole).mean().expand(3))
    if rate == 0.001:
        torch.testing.assert_close(moved, whole)


@pytest.mark.parametrize("value", [1.0, 1e4, 1e6])
def test_moves_are_as_exact_for_large_parameters(value):
    parameter = nn.Parameter(torch.tensor([value]))
    optimizer = RelativeAdam([{"params": [parameter], "units": [torch.tensor([value])]}], lr=1e-4)
    for _ in range(50):
        parameter.grad = torch.tensor([-1 / value])
        optimizer.step()
    assert parameter.item() / value == pytest.approx(1.005, abs=2e-4)


def test_an_interrupted_iteration_leaves_parameters_as_they_were(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = RelativeAdam([{"params": [parameter], "units": [torch.ones(1)]}], lr=0.1)
    parameter.grad = torch.ones(1)
    monkeypatch.setattr(torch.optim.Adam, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert parameter.item() == 3


@pytest.mark.parametrize("phase", PHASES)
def test_each_phase_has_parameters_and_units_that_fit_them(phase):
    recipe = "best" if phase == "distillation" else "paper"
    net = AdaBMNetwork(network=dict(TINY_EDSR), recipe=recipe)
    groups = parameter_groups(net, phase, RELATIVE_RATES)
    assert groups
    for group in groups:
        parameters = group["params"]
        assert parameters
        for parameter, unit in zip(parameters, group.get("units", parameters), strict=True):
            torch.broadcast_to(unit, parameter.shape)


def test_ranges_of_weights_are_learned_too():
    net = AdaBMNetwork(network=dict(TINY_EDSR), recipe="best", w_bits=3, a_bits=3)
    images = photographs(2, 16)
    calibrate(net, [images])
    before = [quantizer.upper.detach().clone() for quantizer in net.weight_quantizers().values()]
    rates = {"weight_correction": 0.0, "bias": 0.0, "activation_range": 0.0}
    tuner = Finetuner(net, FinetuneSettings(learning_rates=rates), 10, 10)
    loss = tuner.loss(images)
    for iteration in range(1, 11):
        tuner.step(images, iteration)
    assert tuner.loss(images) < loss
    for quantizer, old in zip(net.weight_quantizers().values(), before, strict=True):
        moved = (quantizer.upper / old - 1).abs()
        assert 0 < moved.max() < 0.1


def test_the_grid_of_pixels_is_not_trained():
    torch.manual_seed(0)
    images = torch.randint(256, (4, 3, 8, 8)) / 255
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)]
    options = {"w_bits": 8, "a_bits": 8, "recipe": "fast", "fully_quantized": True}
    net = calibrate(quantize(nn.Sequential(*layers), images[:1], **options), [images])
    first, last = net.activation_quantizers().values()
    trained = set()
    for group in parameter_groups(net, "distillation", RELATIVE_RATES):
        trained.update(group["params"])
    assert first.holds_pixels
    assert first.upper not in trained
    assert last.upper in trained
