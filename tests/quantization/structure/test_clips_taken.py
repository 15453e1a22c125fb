"""Clips that a network takes: how many frames they have at least, and how large these are."""

import pytest
import torch
from clip_networks import CarriesOn, Demanding

from adabm_basicsr import AdaBMError, calibrate, quantize
from adabm_basicsr.quantization.structure.clips import Least, find_least, find_taken_clips


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
