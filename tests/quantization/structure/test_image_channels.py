"""Channels of images that networks take, found by trying."""

import pytest
import torch.nn.functional as F
from clip_networks import Stacked
from small_networks import conv
from torch import nn
from users_networks import AttributeMistake

from adabm_basicsr import AdaBMError
from adabm_basicsr.quantization.structure.image_channels import (
    find_example,
    find_image_channels,
)


class BodyFirst(nn.Module):
    """Defines its body before the layer that takes the image."""

    def __init__(self, channels=3):
        super().__init__()
        self.body = nn.ModuleList([conv(48, 48), nn.Conv2d(16, 16, 1)])
        self.first, self.last = nn.Conv2d(channels, 48, 3, padding=1), conv(48, channels)

    def forward(self, x):
        return self.last(F.relu(self.body[0](self.first(x)))) + x


class Unshuffled(nn.Module):
    """Its first layer takes four times the image's channels."""

    def __init__(self, channels=3):
        super().__init__()
        self.first, self.last = conv(4 * channels, 8), conv(8, 4 * channels)

    def forward(self, x):
        return F.pixel_shuffle(self.last(self.first(F.pixel_unshuffle(x, 2))), 2)


@pytest.mark.parametrize("kind", [BodyFirst, Unshuffled])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_layer_that_takes_the_image_needs_not_be_the_first(kind, channels):
    assert find_image_channels(kind(channels)) == channels


def test_what_is_likeliest_is_tried_first():
    assert find_image_channels(nn.Upsample(scale_factor=2), [5]) == 5
    assert find_image_channels(BodyFirst(), [5]) == 3
    assert find_image_channels(nn.Upsample(scale_factor=2)) == 3


def test_lazy_layers_stay_as_they_are():
    network = nn.Sequential(nn.LazyConv2d(8, 3, padding=1), conv(8, 3))
    # As always: of what is known without them.
    assert find_image_channels(network) == 8
    assert network[0].in_channels == 0


def test_where_nothing_fits_in_channels_is_named():
    with pytest.raises(
        AdaBMError,
        match=r"^Unshuffled cannot be run on an image of 28 channels at any size tried .*; with "
        r"3, 1, 8 channels neither \(in_channels says how many it takes\)$",
    ):
        find_image_channels(Unshuffled(7))
    with pytest.raises(AdaBMError, match=r"an image of shape \(1, 28, 48, 48\).*; with 3, 1, 8"):
        find_image_channels(Unshuffled(7), size_multiple=4)


def test_where_no_clip_fits_either_num_frame_is_named():
    network = Stacked(21)
    with pytest.raises(
        AdaBMError,
        match=r"^Stacked cannot be run on an image of 63 channels .*; nor does it run on clips of "
        r"3, 5, 7, 9, 11, 13, 15, 17 frames \(num_frame names another number\)$",
    ):
        find_example(network, likeliest_frames=[17])
    assert find_example(network, likeliest_frames=[21]).shape[1] == 21


@pytest.mark.parametrize("find", [find_image_channels, find_example])
def test_a_mistake_of_code_is_named_alone(find):
    with pytest.raises(AdaBMError, match=r"AttributeError: .*py:\d+\)\)$"):
        find(AttributeMistake())
