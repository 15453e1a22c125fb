"""Steps of fine-tuning, and what each phase trains."""

import pytest
import torch
from conftest import TINY_EDSR
from torch import nn

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.finetuning.optimizer import (
    MAX_PROMISE,
    RelativeAdam,
    parameter_groups,
)
from adabm_basicsr.quantization.recipes import PHASES


@pytest.mark.parametrize("rate", [0.001, 0.1, 10.0])
def test_no_step_promises_to_take_more_than_a_share_of_the_loss_away(rate):
    weight, unit = (
        nn.Parameter(torch.tensor([1.0, -2.0, 0.5]).double()),
        torch.tensor([1.0, 0.1, 10.0]).double(),
    )
    optimizer = RelativeAdam([{"params": [weight], "units": [unit]}], lr=rate)
    before, loss = weight.detach().clone(), weight.square().sum()
    loss.backward()
    optimizer.step(loss=float(loss.detach()))
    moved = weight.detach() - before
    promised = -float((weight.grad * moved).sum())
    whole = rate * unit * -before.sign()  # Adam's first step
    assert promised <= MAX_PROMISE * float(loss) * (1 + 1e-5)
    torch.testing.assert_close(
        moved / whole, (moved / whole).mean().expand(3)
    )  # shortened, not turned
    if rate == 0.001:
        torch.testing.assert_close(moved, whole)


@pytest.mark.parametrize("value", [1.0, 1e4, 1e6])
def test_steps_are_as_exact_for_large_parameters(value):
    parameter = nn.Parameter(torch.tensor([value]))
    optimizer = RelativeAdam([{"params": [parameter], "units": [torch.tensor([value])]}], lr=1e-4)
    for _ in range(50):
        parameter.grad = torch.tensor([-1 / value])
        optimizer.step()
    assert parameter.item() / value == pytest.approx(1.005, abs=2e-4)


def test_an_interrupted_step_leaves_parameters_as_they_were(monkeypatch):
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
    net = AdaBMNetwork(
        network=dict(TINY_EDSR), recipe="best" if phase == "distillation" else "paper"
    )
    groups = parameter_groups(
        net,
        phase,
        dict.fromkeys(
            (
                "activation_range",
                "bias",
                "image_threshold",
                "layer_factor",
                "weight_correction",
                "weight_range",
            ),
            1.0,
        ),
    )
    for group in groups:
        assert group["params"]
        for parameter, unit in zip(
            group["params"], group.get("units", group["params"]), strict=True
        ):
            torch.broadcast_to(unit, parameter.shape)
    assert groups
