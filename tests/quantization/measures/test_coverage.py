"""What share of a network is quantized, what is not and why."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adabm_basicsr import quantize
from adabm_basicsr.quantization.measures.coverage import measure_coverage

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Block(nn.Module):
    """A residual block that computes one of its convolutions as a function."""

    def __init__(self, hidden):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) / 10) if hidden else None

    def forward(self, x):
        y = F.relu(self.conv(x))
        # Computed on the fly: no parameter that could be quantized.
        return x + (y if self.kernel is None else F.conv2d(y, self.kernel.tanh(), padding=1))


class Network(nn.Module):
    def __init__(self, hidden=False):
        super().__init__()
        self.shift = nn.Conv2d(3, 3, 1)
        self.shift.weight.data = torch.eye(3).view(3, 3, 1, 1) / 2
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(hidden) for _ in range(3)])
        self.after = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x):
        features = first = self.first(self.shift(x))
        for block in self.blocks:
            features = block(features)
        return F.pixel_shuffle(self.last(self.after(features) + first), 2)


def coverage(network=None, **options):
    if network is None:
        network = Network()
    return measure_coverage(quantize(network, EXAMPLE, **options))


def test_shares_are_those_of_macs_and_weights():
    body = coverage()
    macs = {"first": 27 * 8, "blocks": 3 * 72 * 8, "after": 72 * 8, "last": 72 * 12, "shift": 9}
    assert body.layers == 3
    assert body.macs == pytest.approx(macs["blocks"] / sum(macs.values()))
    biases = 3 + 8 + 3 * 8 + 8 + 12
    assert body.weights == pytest.approx(macs["blocks"] / (sum(macs.values()) + biases))
    assert body.warning() is None
    full = coverage(fully_quantized=True)
    assert full.macs == pytest.approx(1 - macs["shift"] / sum(macs.values()))
    assert full.skipped["shift"].reason == "colour shift"
    assert full.warning() is None


def test_weights_that_are_computed_on_the_fly_are_named_with_their_share():
    found = coverage(Network(hidden=True))
    # As much as the layers that are quantized.
    assert found.gap == pytest.approx(found.macs, rel=1e-6)
    assert (
        "blocks.0: convolution, blocks.1: convolution, blocks.2: convolution: its weight is no "
        "parameter of the module, such as one that is computed on the fly" in found.warning()
    )
    assert (
        f"{100 * found.gap:.1f} % of the MACs should be quantized in this mode and aren't"
        in found.warning()
    )
    assert "blocks.0: convolution" in str(found)


def test_what_the_user_excludes_is_no_gap():
    found = coverage(
        fully_quantized=True, exclude=("blocks.1",), layers={"after": {"w_bits": 32, "a_bits": 32}}
    )
    assert found.skipped["blocks.1.conv"].reason == "excluded"
    assert found.skipped["after"].reason == "32 bits"
    assert found.warning() is None
    assert found.macs < 0.8


def test_unsupported_layer_types_are_named():
    class Odd(Block):
        def __init__(self):
            super().__init__(False)
            self.odd = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x):
            rows = self.odd(x.flatten(0, 2).unsqueeze(1))
            return super().forward(x) + rows.view_as(x)

    network = Network()
    network.blocks = nn.ModuleList([Odd(), Odd()])
    assert (
        "blocks.0.odd: convolution, blocks.1.odd: convolution: no quantized type for Conv1d"
        in str(coverage(network))
    )
