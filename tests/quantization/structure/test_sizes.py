"""Image sizes that networks want, found by trying, and mirrored borders."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, quantize
from adabm_basicsr.quantization.checks import check_images
from adabm_basicsr.quantization.structure.sizes import (
    find_size_multiple,
    pad_to_multiple,
    run_padded,
)

EXAMPLE = torch.zeros(1, 3, 24, 24)


class Windowed(nn.Module):
    """Fails on sizes that aren't multiples of ``size``, as a network with windows does."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.first, self.body, self.last = (
            nn.Conv2d(c, d, 3, padding=1) for c, d in ((3, 8), (8, 8), (8, 12))
        )

    def forward(self, x):
        b, _, h, w = x.shape
        x.view(b, 3, h // self.size, self.size, w // self.size, self.size)
        return F.pixel_shuffle(self.last(F.relu(self.body(self.first(x)))), 2)


class Unet(nn.Module):
    """Runs on any size, but gives an image of another size where it isn't a multiple of 4."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 4, stride=4), nn.ConvTranspose2d(8, 3, 4, stride=4)

    def forward(self, x):
        return self.up(self.down(x))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 12, 16])
def test_multiple_of_windows_is_found(size):
    assert find_size_multiple(Windowed(size), EXAMPLE) == size


def test_multiple_of_strides_is_found_from_the_output():
    assert find_size_multiple(Unet(), EXAMPLE) == 4


def test_network_that_takes_no_size_is_rejected():
    with pytest.raises(
        AdaBMError, match=r"Conv2d cannot be run on an image of 3 channels at any size tried"
    ):
        find_size_multiple(nn.Conv2d(5, 3, 3), EXAMPLE)


def test_a_mistake_of_code_is_reported_with_its_place():
    class Mistaken(nn.Module):
        def forward(self, x):
            return x.nope

    with pytest.raises(AdaBMError, match=r"has no attribute 'nope' \(.*test_sizes.py:\d+\)\)$"):
        find_size_multiple(Mistaken(), EXAMPLE)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 32))
def test_padding_mirrors_and_crops_back(height, width, multiple):
    image = torch.rand(2, 3, height, width)
    padded = pad_to_multiple(image, multiple)
    assert padded.shape[2] % multiple == padded.shape[3] % multiple == 0
    assert padded.shape[2] - height < multiple
    assert padded.shape[3] - width < multiple
    assert torch.equal(run_padded(nn.Identity(), image, multiple), image)
    assert run_padded(nn.Upsample(scale_factor=3), image, multiple).shape[2:] == (
        3 * height,
        3 * width,
    )


def test_padding_is_a_reflection():
    image = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 5, 5)
    assert pad_to_multiple(image, 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]


def test_quantized_network_takes_any_size():
    network = Windowed(8)
    net = quantize(network, EXAMPLE, recipe="best", w_bits=8, a_bits=8)
    calibrate(net, [torch.rand(2, 3, 19, 21)])
    with torch.no_grad():
        output = net(torch.rand(1, 3, 13, 30))
    assert net.size_multiple == 8
    assert output.shape == (1, 3, 26, 60)


def test_size_multiple_can_be_given():
    assert quantize(Windowed(4), EXAMPLE, size_multiple=12).size_multiple == 12
    with pytest.raises(AdaBMError, match="size_multiple: 0 is out of range; valid: 1 to 256"):
        quantize(Windowed(4), EXAMPLE, size_multiple=0)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(3, 8, 8),
        torch.rand(1, 1, 8, 8),
        torch.rand(1, 3, 0, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.rand(1, 3, 8, 8).numpy(),
    ],
)
def test_images_of_another_kind_or_shape_are_rejected(images):
    net = calibrate(quantize(Windowed(4), EXAMPLE), [torch.rand(2, 3, 16, 16)])
    with pytest.raises(
        AdaBMError, match=r"images: .* can't be taken; valid: a float tensor \(B, 3, H, W\) in 0..1"
    ):
        net(images)
    check_images(torch.rand(2, 3, 5, 7), 3)
