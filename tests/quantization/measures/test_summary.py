"""The table of layers."""

import pytest
import torch
from torch import nn

from adabm_basicsr import calibrate, quantize, summarize

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def test_summary_names_every_layer_and_every_reason(tiny):
    net = calibrate(quantize(tiny, IMAGES[:1]), [IMAGES])
    summary = summarize(net, IMAGES)
    text = str(summary)
    assert [row.name for row in summary.layers] == list(net.layers())
    assert all(name in text for name in net.layers())
    assert "upsample.0, conv_last: tail (fully_quantized is off), " in text
    assert "conv_first: head (fully_quantized is off)" in text
    assert 0 < summary.coverage.macs < 1
    assert 3 <= summary.fab <= 5
    body = [row for row in summary.layers if not net.plan.layers[row.name].fixed]
    expected = sum(row.a_bits * row.macs_share for row in body) / sum(
        row.macs_share for row in body
    )
    assert summary.bits_by_macs == pytest.approx(expected)
    assert f"weighted by MACs {expected:.2f}" in text
    assert all(row.sqnr_db > 0 for row in summary.layers)


def unequal_channels():
    """A network with a layer whose input channels differ by a factor of 100."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1)
    middle = nn.Conv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        factors = torch.logspace(0, 2, 8)
        first.weight.mul_(factors.view(-1, 1, 1, 1))
        first.bias.mul_(factors)
        middle.weight.div_(factors.view(1, -1, 1, 1))
    return nn.Sequential(first, middle, nn.Conv2d(8, 3, 3, padding=1))


@pytest.mark.parametrize("recipe", ["best", "fast", "paper", "static"])
def test_ranges_and_values_are_in_units_of_the_input(recipe):
    net = calibrate(quantize(unequal_channels(), IMAGES[:1], recipe=recipe), [IMAGES])
    row = next(layer for layer in summarize(net, IMAGES).layers if layer.name == "1")
    quantizer = net.activation_quantizers()["1"]
    seen = []

    def note(quantizer, args, output):
        bits = quantizer.bits_used().view(-1, 1, 1, 1)
        seen.append((args[0], *quantizer.ends(args[0]), bits))

    hook = quantizer.register_forward_hook(note)
    with torch.no_grad():
        net(IMAGES)
    hook.remove()
    ((x, lower, upper, bits),) = seen
    assert (row.lowest, row.highest) == (x.min().item(), x.max().item())
    assert sum(row.counts) == x.numel()
    assert row.lower == pytest.approx(lower.min().item(), rel=0.5)
    assert row.lower <= lower.min()
    assert row.upper >= upper.max()
    assert row.upper == pytest.approx(row.highest, rel=0.5)
    half = (upper - lower) / (2**bits - 1) / 2
    outside = (x < lower - half) | (x > upper + half)
    assert row.clipped == pytest.approx(outside.double().mean().item(), abs=1e-4)
    assert row.clipped < 0.05
    assert f"{100 * row.clipped:.2f} %" in row.cells()


def test_values_beyond_the_range_are_counted():
    net = calibrate(quantize(unequal_channels(), IMAGES[:1]), [IMAGES])
    quantizer = net.activation_quantizers()["1"]
    before = summarize(net, IMAGES).layers[0].clipped
    with torch.no_grad():
        quantizer.lower.mul_(0.5)
        quantizer.upper.mul_(0.5)
    after = summarize(net, IMAGES).layers[0].clipped
    assert before < 0.05 < after < 0.9
