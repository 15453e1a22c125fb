"""Options of architectures: which their constructors take, and which of them is wrong."""

import pytest
import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from small_networks import Interpolating
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, load_network, quantize, save_checkpoint
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork, build_base


@ARCH_REGISTRY.register()
class AnyPositions(Interpolating):
    def __init__(self, *args):
        super().__init__(*(args or (1,)))


@ARCH_REGISTRY.register()
class AnyPositionsAndNames(Interpolating):
    def __init__(self, *args, blocks=1, **kwargs):
        super().__init__(blocks)


@ARCH_REGISTRY.register()
class NeedsAPosition(Interpolating):
    def __init__(self, blocks, /):
        super().__init__(blocks)


@ARCH_REGISTRY.register()
class Typed(Interpolating):
    def __init__(self, blocks=2, scales=(1.0,), name="x", fast=False, inner=None):
        super().__init__(blocks + int(sum(scales)) + len(name) + (1 / 0 if fast == 3 else 0))


def test_arguments_by_position_may_be_left_out():
    assert len(build_base({"type": "AnyPositions"}).blocks) == 1
    assert len(build_base({"type": "AnyPositionsAndNames", "blocks": 2, "x": 1}).blocks) == 2


WRONG = {
    "AnyPositions: unknown key 'args'; there are none": {"type": "AnyPositions", "args": [2]},
    "NeedsAPosition: its argument blocks can't be given by name, as options are; remove the / "
    "behind it": {"type": "NeedsAPosition"},
    "Typed: blocks: 'x' is not of the kind of 2, its default": {"blocks": "x"},
    "Typed: blocks: True is not of the kind of 2, its default": {"blocks": True, "scales": ["x"]},
    "Typed: scales: 3 is not of the kind of (1.0,), its default": {"scales": 3},
    "Typed: name: 3 is not of the kind of 'x', its default": {"name": 3},
    "Typed: fast: 3 is not of the kind of False, its default": {"fast": 3},
    "Typed cannot be built from {scales: ['x'], inner: 3}": {"scales": ["x"], "inner": 3},
}


@pytest.mark.parametrize("text", WRONG)
def test_options_that_an_architecture_does_not_take(text):
    with pytest.raises(AdaBMError) as caught:
        build_base({"type": "Typed", **WRONG[text]})
    assert str(caught.value).startswith(f"network_g: network: {text}")


@ARCH_REGISTRY.register()
class DefinedBackwards(nn.Module):
    """Its first convolution isn't the one that takes the image, nor are its in_channels."""

    def __init__(self, in_channels=8, colours=3):
        super().__init__()
        self.body = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.last = nn.Conv2d(in_channels, 4 * colours, 3, padding=1)
        self.first = nn.Conv2d(4 * colours, in_channels, 3, padding=1)

    def forward(self, x):
        return F.pixel_shuffle(self.last(self.body(self.first(F.pixel_unshuffle(x, 2)))), 2)


def test_channels_of_images_are_found(tmp_path):
    network = {"type": "DefinedBackwards", "in_channels": 8}
    assert AdaBMNetwork(network, recipe="static").in_channels == 3


def test_channels_that_none_would_guess_are_given_beside_the_network(tmp_path):
    network = {"type": "DefinedBackwards", "in_channels": 8, "colours": 7}
    with pytest.raises(AdaBMError, match="in_channels says how many"):
        AdaBMNetwork(network, recipe="static")
    net = AdaBMNetwork(network, recipe="static", w_bits=8, a_bits=8, in_channels=7)
    calibrate(net, [torch.rand(2, 7, 24, 24)])
    save_checkpoint(net, tmp_path / "net.pth")
    again = load_network(tmp_path / "net.pth")
    assert again.in_channels == 7
    assert again.network_options == network


def test_channels_of_the_example_are_those_that_were_given():
    with pytest.raises(AdaBMError, match=r"^in_channels: 4, but the example has 3$"):
        quantize(Interpolating(1), torch.zeros(1, 3, 24, 24), in_channels=4)
