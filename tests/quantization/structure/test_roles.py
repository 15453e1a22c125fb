"""Head, body and tail are found without knowing the network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.structure.roles import Role, find_structure

EXAMPLE = torch.zeros(1, 3, 24, 24)


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)

    def forward(self, x):
        return x + self.b(F.relu(self.a(x)))


class Interpolating(nn.Module):
    """Upsamples without a layer, as RRDBNet does."""

    def __init__(self, blocks):
        super().__init__()
        self.first = conv(3, 8)
        self.blocks = nn.Sequential(*[Block() for _ in range(blocks)])
        self.after, self.up, self.last = conv(8, 8), conv(8, 8), conv(8, 3)

    def forward(self, x):
        x = self.first(x)
        x = x + self.after(self.blocks(x))
        return self.last(self.up(F.interpolate(x, scale_factor=2)))


def roles(network):
    return {name: role.value for name, role in find_structure(network, EXAMPLE).roles.items()}


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_interpolating_network(blocks):
    found = roles(Interpolating(blocks))
    assert found.pop("first") == "head"
    assert found.pop("after") == "trunk end"
    assert found.pop("up") == found.pop("last") == "tail"
    assert set(found.values()) == {"body"}
    assert len(found) == 2 * blocks


def test_edsr(tiny):
    structure = find_structure(tiny, EXAMPLE)
    assert structure.blocks == ["body.0", "body.1"]
    assert structure.roles["conv_first"] is Role.HEAD
    assert structure.roles["body.1.conv2"] is Role.BODY
    assert structure.roles["conv_after_body"] is Role.TRUNK_END
    assert structure.roles["upsample.0"] is structure.roles["conv_last"] is Role.TAIL
    assert structure.macs["conv_first"] == 24 * 24 * 8 * 3 * 9


def test_plain_chain_of_layers_has_a_body_too():
    chain = nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 12)
    )
    network = nn.Sequential(chain, nn.PixelShuffle(2))
    assert roles(network) == {"0.0": "head", "0.2": "body", "0.4": "body", "0.6": "tail"}


def test_layer_that_feeds_the_shuffle_is_no_block_though_it_looks_like_one():
    blocks = [nn.Sequential(conv(12, 12), nn.ReLU()) for _ in range(3)]
    found = roles(nn.Sequential(nn.Sequential(conv(3, 12), *blocks), nn.PixelShuffle(2)))
    assert list(found.values()) == ["head", "body", "body", "tail"]


def test_pooled_attention_is_part_of_its_block():
    class Attending(Block):
        def __init__(self):
            super().__init__()
            self.squeeze = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            pooled = F.interpolate(self.squeeze(F.avg_pool2d(x, 4)), size=x.shape[2:])
            return super().forward(x) * torch.sigmoid(pooled)

    network = Interpolating(2)
    network.blocks = nn.Sequential(Attending(), Attending())
    found = roles(network)
    assert found["blocks.0.squeeze"] == found["blocks.1.squeeze"] == "body"
    assert found["after"] == "trunk end"


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
    structure = find_structure(network, EXAMPLE)
    assert structure.blocks == [f"blocks.0.inner.{index}" for index in range(4)]
    assert structure.roles["blocks.0.inner.4"] is Role.TRUNK_END


def test_network_without_layers_is_refused():
    with pytest.raises(AdaBMError, match="has no convolution or linear layer"):
        find_structure(nn.PixelShuffle(1), EXAMPLE)


def test_the_network_is_left_as_it_was(tiny):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    find_structure(tiny, EXAMPLE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())


class Two(Block):
    def forward(self, x):
        return x, super().forward(x)


def test_a_network_of_two_outputs_is_refused():
    with pytest.raises(AdaBMError, match="Two gives a tuple instead of one image"):
        find_structure(Two(), torch.zeros(1, 8, 24, 24))


class UNet(nn.Module):
    """Two arms of blocks and a bottom, at resolutions of their own, and a layer at either end."""

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


def test_windows_of_linear_layers_do_not_look_like_an_upsampling():
    class Windowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.after, self.last = conv(3, 8), conv(8, 8), conv(8, 12)
            self.widen, self.narrow = nn.Linear(8, 64), nn.Linear(64, 8)

        def forward(self, x):
            x = self.first(x)
            # In this layout, height times width are no trailing axes.
            windows = x.permute(0, 2, 3, 1)
            x = x + self.narrow(F.relu(self.widen(windows))).permute(0, 3, 1, 2)
            return F.pixel_shuffle(self.last(self.after(x)), 2)

    expected = {"first": "head", "widen": "body", "narrow": "body", "after": "body", "last": "tail"}
    assert roles(Windowed()) == expected
