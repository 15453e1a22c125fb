"""Clips that a network takes: how many frames they have at least, and how large these are."""

import pytest
import torch
import torch.nn.functional as F
from clip_networks import CarriesOn, Demanding, MiddleFrame, Stacked
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, quantize
from adabm_basicsr.quantization.structure.clips import (
    Clips,
    Least,
    find_least,
    find_taken_clips,
)
from adabm_basicsr.quantization.structure.image_channels import find_example


@pytest.mark.parametrize(
    ("shape", "least"),
    [
        ((3, 20, 24), None),
        ((3, 19, 24), Least(side=20)),
        ((3, 24, 1), Least(side=20)),
        ((2, 24, 24), Least(frames=3)),
        ((1, 8, 8), Least(frames=3)),
        ((2, 100, 100), Least(frames=3)),
    ],
)
def test_the_least_is_found_by_trying(shape, least):
    frames, height, width = shape
    assert find_least(Demanding(), torch.rand(2, frames, 3, height, width)) == least


@pytest.mark.parametrize(
    ("kept", "made"), [(slice(1, -1), 3), (slice(2, 3), 1)], ids=["cropped", "the middle one"]
)
def test_a_clip_of_another_length_is_rejected(kept, made):
    class Crops(CarriesOn):
        def forward(self, clip):
            return super().forward(clip)[:, kept]

    with pytest.raises(AdaBMError, match=f"^Crops makes {made} frames of a clip of 5; it has to"):
        find_taken_clips(Crops(), torch.rand(1, 5, 3, 8, 8))


def test_a_network_of_one_length_is_one_of_windows():
    network = Stacked(7)
    assert find_taken_clips(network, find_example(network)) == Clips(7, any_length=False)


class ChannelsFirst(nn.Module):
    """Takes and makes clips ``(B, C, T, H, W)``."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 3, padding=1)

    def forward(self, clip):
        return F.interpolate(clip + self.conv(clip), scale_factor=(1, 4, 4))


class MiddleOfChannelsFirst(ChannelsFirst):
    """Makes the middle frame alone."""

    def forward(self, clip):
        return super().forward(clip)[:, :, clip.shape[2] // 2]


@pytest.mark.parametrize("kind", [ChannelsFirst, MiddleOfChannelsFirst])
def test_axes_in_another_order_are_rejected(kind):
    """On three frames of three channels it runs."""
    network = kind()
    message = rf"^{kind.__name__} takes clips \(B, C, T, H, W\); it has to take \(B, T, C, H, W\)$"
    with pytest.raises(AdaBMError, match=message):
        find_taken_clips(network, find_example(network))


def test_three_frames_of_three_channels():
    clip = torch.rand(1, 3, 3, 8, 8)
    for network, clips in {
        CarriesOn(): Clips(3, any_length=True),
        MiddleFrame(): Clips(3, any_length=False),
        Stacked(3): Clips(3, any_length=False),
    }.items():
        assert find_taken_clips(network, clip) == clips


def test_another_reason_has_no_least():
    assert find_least(CarriesOn(), torch.rand(1, 3, 1, 8, 8)) is None


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((4, 3, 12, 40), "frames of at least 20x20 pixels, but the clip has 4 of 40x12 pixels"),
        ((2, 3, 24, 24), "clips of at least 3 frames, but the clip has 2 of 24x24 pixels"),
    ],
)
def test_a_quantized_network_says_what_it_takes(shape, text):
    net = quantize(Demanding(), torch.rand(1, 5, 3, 32, 32), recipe="fast", fully_quantized=True)
    calibrate(net, [torch.rand(1, 3, 3, 24, 24)])
    with pytest.raises(AdaBMError, match=f"^Demanding takes {text}$"):
        net(torch.rand(1, *shape))
