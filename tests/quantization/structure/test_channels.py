"""Channels that only scale together are found, and those that can't be scaled are left alone."""

import torch
import torch.nn.functional as F
from small_networks import Recursive, conv
from torch import nn

from adabm_basicsr.quantization.structure.channels import FIXED_CLASS, find_channels

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two layers and a function between them."""

    def __init__(self, function, made=8, taken=8):
        super().__init__()
        self.function = function
        self.first, self.last = conv(3, made), conv(taken, 3)

    def forward(self, image):
        return self.last(self.function(self.first(image)))


def classes_between(function, taken=8):
    """Classes of what the first layer makes and the last one takes."""
    network = Between(function, taken=taken)
    channels = find_channels(network, IMAGE)
    made = channels[network.first].outputs.tolist()
    return made, channels[network.last].inputs.tolist()


def test_each_channel_is_for_itself():
    for function in (
        F.relu,
        F.relu_,
        nn.PReLU(8),
        nn.LeakyReLU(0.1, inplace=True),
        lambda x: 0.5 * x / 3,
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        lambda x: F.pad(x, (1, 2, 3, 4)),
        lambda x: F.pad(x, (1, 2, 3, 4), mode="reflect"),
        lambda x: x.mean((2, 3), keepdim=True) + x.std((2, 3), keepdim=True),
        lambda x: (x - x.mean((2, 3), keepdim=True)).square().mean((2, 3), keepdim=True).sqrt(),
        lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
        lambda x: F.dropout(x, training=False).half().float(),
    ):
        made, taken = classes_between(function)
        assert made == taken
        assert len(set(made)) == 8
        assert FIXED_CLASS not in made


def test_channels_move():
    made, taken = classes_between(lambda x: torch.cat([x[:, 4:], x.flip(1)[:, :2]], 1), 6)
    assert taken == [*made[4:], *made[:-3:-1]]
    made, taken = classes_between(lambda x: F.pixel_shuffle(x, 2), 2)
    assert made == [taken[0]] * 4 + [taken[1]] * 4


def add_half_(x):
    x[:, :4] += x[:, 4:]
    return x


def test_sums_make_channels_belong_together():
    made, taken = classes_between(lambda x: x + x.flip(1))
    assert made == made[::-1] == taken
    assert len(set(made)) == 4
    made, taken = classes_between(add_half_)
    assert made[:4] == made[4:]
    made, taken = classes_between(lambda x: x.mean(1, keepdim=True), 1)
    assert set(made) == set(taken)
    assert FIXED_CLASS not in made


def test_what_keeps_no_proportions_fixes_channels():
    for function in (
        torch.sigmoid,
        torch.tanh_,
        F.gelu,
        nn.GroupNorm(2, 8),
        lambda x: x.clamp(-1, 1),
        lambda x: x + 1,
        lambda x: x + torch.ones(8, 1, 1),
        lambda x: x * x.sigmoid(),
        lambda x: x.square(),
        lambda x: x.square() + x,
        lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
        lambda x: torch.matmul(x, x.transpose(2, 3)),
        lambda x: torch.div(x, 2, rounding_mode="floor"),
    ):
        made, taken = classes_between(function)
        assert set(made) == set(taken) == {FIXED_CLASS}


def test_the_image_and_the_output_are_fixed():
    network = Between(F.relu)
    channels = find_channels(network, IMAGE)
    assert set(channels[network.first].inputs.tolist()) == {FIXED_CLASS}
    assert set(channels[network.last].outputs.tolist()) == {FIXED_CLASS}


def test_views_share_what_is_written_to_them():
    def write(x):
        x[:, :2] = torch.sigmoid(x[:, 6:])
        return x

    made, taken = classes_between(write)
    assert made[6:] == taken[:2] == [FIXED_CLASS] * 2
    assert taken[2:6] == made[2:6]
    assert FIXED_CLASS not in made[:6]


class Gated(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.gate = gate
        self.first, self.squeeze, self.expand = conv(3, 8), conv(8, 2), conv(2, 8)
        self.last = conv(8, 3)

    def forward(self, image):
        x = self.first(image)
        gate = self.expand(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return self.last(x * self.gate(gate))


def test_gates_are_fixed_and_what_they_weigh_is_not():
    for gate in (torch.sigmoid, nn.Identity()):
        network = Gated(gate)
        channels = find_channels(network, IMAGE)
        made = channels[network.first].outputs.tolist()
        assert made == channels[network.last].inputs.tolist()
        assert made == channels[network.squeeze].inputs.tolist()
        assert FIXED_CLASS not in made
        assert set(channels[network.expand].outputs.tolist()) == {FIXED_CLASS}


def test_layers_that_run_again():
    network = Recursive()
    channels = find_channels(network, IMAGE)
    trunk = channels[network.first].outputs.tolist()
    assert trunk == channels[network.block.b].outputs.tolist()
    assert trunk == channels[network.block.a].inputs.tolist()
    assert FIXED_CLASS not in trunk


def test_shared_and_foreign_weights_are_left_alone():
    network = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 3))
    network[2].weight = network[1].weight
    channels = find_channels(network, IMAGE)
    assert network[1] not in channels
    assert set(channels[network[0]].outputs.tolist()) == {FIXED_CLASS}

    network = Between(F.relu)
    network.function = lambda x: x * network.last.weight.abs().mean()
    channels = find_channels(network, IMAGE)
    assert set(channels[network.last].inputs.tolist()) == {FIXED_CLASS}


def test_groups_and_layers_of_tokens():
    network = nn.Sequential(
        conv(3, 8), nn.Conv2d(8, 8, 1, groups=8), nn.ConvTranspose2d(8, 4, 1, groups=2), conv(4, 3)
    )
    channels = find_channels(network, IMAGE)
    assert (
        len(set(channels[network[1]].inputs.tolist() + channels[network[1]].outputs.tolist())) == 16
    )
    rows = channels[network[2]].outputs.tolist()
    assert channels[network[3]].inputs.tolist() == rows * 2

    network = Between(nn.Linear(16, 16))
    channels = find_channels(network, IMAGE)
    # Along the image's rows: all channels are taken at each place.
    assert len(set(channels[network.first].outputs.tolist())) == 1
    linear = nn.Linear(8, 8)
    network = Between(lambda x: linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    network.linear = linear
    channels = find_channels(network, IMAGE)
    assert len(set(channels[linear].inputs.tolist())) == 8
    assert channels[linear].outputs.tolist() == channels[network.last].inputs.tolist()


def test_nothing_is_found_where_a_layer_did_not_run():
    network = Between(F.relu)
    network.unused = conv(8, 8)
    assert find_channels(network, IMAGE) == {}
