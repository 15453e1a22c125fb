"""The repeated blocks of the body are found, or named by the user."""

import pytest
import torch.nn.functional as F
from small_networks import EXAMPLE, Block, Interpolating, conv
from torch import nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.config import QuantizationConfig
from adabm_basicsr.quantization.structure.roles import Role, find_structure


def structure_of(network, **options):
    return find_structure(network, EXAMPLE, QuantizationConfig(**options))


def roles(network):
    return {name: role.value for name, role in structure_of(network).roles.items()}


def test_siblings_of_one_type_are_blocks():
    assert structure_of(Interpolating(3)).blocks == ["blocks.0", "blocks.1", "blocks.2"]
    assert structure_of(Interpolating(1)).blocks == ["blocks.0"]


def test_blocks_inside_one_module_are_found():
    network = Interpolating(4)
    network.blocks = nn.Sequential(nn.Sequential(*network.blocks, conv(8, 8)))

    class Shortcut(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return x + self.inner(x)

    network.blocks = nn.Sequential(Shortcut(network.blocks[0]))
    structure = structure_of(network)
    assert structure.blocks == [f"blocks.0.inner.{index}" for index in range(4)]
    assert structure.roles["blocks.0.inner.4"] is Role.TRUNK_END


def test_layer_that_feeds_the_shuffle_is_no_block_though_it_looks_like_one():
    blocks = [nn.Sequential(conv(12, 12), nn.ReLU()) for _ in range(3)]
    found = roles(nn.Sequential(nn.Sequential(conv(3, 12), *blocks), nn.PixelShuffle(2)))
    assert list(found.values()) == ["head", "body", "body", "tail"]


class UNet(nn.Module):
    """Two arms of blocks and a bottom at resolutions of their own, and a layer at either end."""

    def __init__(self, middle=1):
        super().__init__()
        self.first, self.last = conv(3, 8), conv(8, 3)
        self.encoders, self.decoders = (nn.ModuleList([Block(), Block()]) for _ in range(2))
        self.middle = nn.Sequential(*[Block() for _ in range(middle)])

    def forward(self, x):
        x = kept = self.encoders[0](self.first(x))
        x = self.middle(self.encoders[1](F.avg_pool2d(x, 2)))
        x = self.decoders[0](F.interpolate(self.decoders[1](x), scale_factor=2) + kept)
        return self.last(x)


@pytest.mark.parametrize("middle", [1, 3])
def test_neither_an_arm_nor_the_bottom_of_a_u_net_is_the_body(middle):
    found = roles(UNet(middle))
    assert found.pop("first") == "head"
    assert found.pop("last") == "tail"
    assert set(found.values()) == {"body"}
    assert len(found) == 2 * (4 + middle)


def test_light_blocks_before_a_heavy_layer_are_the_body():
    class Separable(nn.Module):
        def __init__(self):
            super().__init__()
            self.deep, self.wide = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)

        def forward(self, x):
            return x + self.wide(F.relu(self.deep(x)))

    network = nn.Sequential(
        conv(3, 16),
        *[Separable() for _ in range(3)],
        conv(16, 16),
        conv(16, 12),
        nn.PixelShuffle(2),
    )
    assert list(roles(network).values()) == ["head", *["body"] * 6, "trunk end", "tail"]


def test_without_blocks_the_body_layers_serve():
    network = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 3))
    assert structure_of(network).blocks == ["2"]


def test_named_blocks_are_the_outermost_that_match():
    network = Interpolating(3)
    assert structure_of(network, blocks=["blocks.[12]"]).blocks == ["blocks.1", "blocks.2"]
    assert structure_of(network, blocks=["blocks", "blocks.1"]).blocks == ["blocks"]


def test_patterns_of_blocks_name_modules():
    message = (
        "blocks: pattern 'block.0' matches no module with layers in it; did you mean 'blocks.0'"
    )
    with pytest.raises(AdaBMError, match=message):
        structure_of(Interpolating(2), blocks=["block.0"])
