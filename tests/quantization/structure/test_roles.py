"""Head, body and tail are found without knowing the network."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import EXAMPLE, Block, Interpolating, conv
from torch import nn

from adabm_basicsr import quantize
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.config import QuantizationConfig
from adabm_basicsr.quantization.structure.roles import Role, find_structure


def roles(network, **options):
    structure = find_structure(network, EXAMPLE, QuantizationConfig(**options))
    return {name: role.value for name, role in structure.roles.items()}


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


def test_network_without_layers_is_rejected():
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


def test_a_network_of_two_outputs_is_rejected():
    with pytest.raises(
        AdaBMError, match="Two gives a tuple of Tensor, Tensor instead of one image"
    ):
        find_structure(Two(), torch.zeros(1, 8, 24, 24))


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


def test_named_head_and_tail_are_nothing_else():
    network = Interpolating(2)
    moved = roles(network, head=["blocks.0"], tail=["after"])
    assert moved["first"] == "body"
    assert moved["blocks.0.a"] == moved["blocks.0.b"] == "head"
    assert moved["after"] == "tail"
    assert moved["up"] == moved["last"] == "trunk end"
    assert roles(network, head=["first", "blocks.0"])["blocks.0.a"] == "head"


def test_named_body_layers_are_body_wherever_they_stand():
    found = roles(Interpolating(2), body=["after"])
    assert found["after"] == "body"
    assert found["blocks.0.a"] == "body"


def test_what_comes_before_named_blocks_is_head():
    found = roles(Interpolating(3), blocks=["blocks.[12]"])
    assert found["first"] == found["blocks.0.a"] == "head"
    assert found["blocks.1.a"] == found["blocks.2.b"] == "body"


@pytest.mark.parametrize("key", ["head", "tail", "body"])
def test_patterns_that_match_nothing_name_near_misses(key):
    message = rf"{key}: pattern 'aftre' matches no layer; did you mean 'after'"
    with pytest.raises(AdaBMError, match=message):
        roles(Interpolating(2), **{key: ["aftre"]})


def test_patterns_are_a_list():
    for key in ("head", "tail", "body", "blocks", "exclude", "non_adaptive"):
        with pytest.raises(AdaBMError, match=f"{key}: 'blocks' is not a list of patterns"):
            QuantizationConfig(**{key: "blocks"})


def test_calls_of_shared_layers_are_counted():
    network = Interpolating(2)
    network.blocks[1] = network.blocks[0]
    structure = find_structure(network, EXAMPLE)
    assert structure.calls["blocks.0.a"] == 2
    assert structure.macs["blocks.0.a"] == 2 * 24 * 24 * 9 * 8 * 8


def test_layers_of_half_precision_stay_as_they_are():
    class Half(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x).bfloat16()).float())

    half = conv(8, 8).bfloat16()
    net = quantize(Half(conv(3, 8), half, conv(8, 3)), EXAMPLE, fully_quantized=True)
    assert list(net.layers()) == ["0", "2"]
    assert net.plan.skipped == {"1": "no quantized type for Conv2d in torch.bfloat16"}
