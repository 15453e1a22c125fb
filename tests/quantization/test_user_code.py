"""What a user's network raises becomes one line that names module, file and line."""

import random

import pytest
import torch
from torch import nn
from users_networks import (
    AssertionMistake,
    AttributeMistake,
    GivesDict,
    GivesNone,
    GivesVector,
    GivesVectors,
    IntegerOutput,
    OddSizes,
    Smooth,
    WithNumpy,
)

from adabm_basicsr import AdaBMError, calibrate, quantize
from adabm_basicsr.quantization.user_code import users_code

IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


def failing(error):
    """What becomes of an error that the second module of a network raises."""
    network = nn.Sequential(nn.ReLU(), Raising(error))
    with users_code(network, "Net fails", "; mend it"):
        network(IMAGES)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("too bright\nsecond line"), "ValueError: too bright"),
        (KeyError("depths"), "KeyError: 'depths'"),
        (AssertionError(), "AssertionError"),
        (StopIteration(), "StopIteration"),
        (RuntimeError("long " * 100), "RuntimeError: (long )+.*\\.\\.\\."),
    ],
)
def test_an_error_is_one_line_with_module_file_and_line(error, text):
    line = rf"^Net fails: 1 \(Raising\) raises {text} \(\S*test_user_code\.py:\d+\); mend it$"
    with pytest.raises(AdaBMError, match=line) as caught:
        failing(error)
    assert caught.value.__cause__ is error


def test_the_place_is_not_in_a_library():
    class Choosing(nn.Module):
        def forward(self, x):
            return random.choice([])

    line = r"IndexError: .* \(\S*test_user_code\.py:\d+\)$"
    with pytest.raises(AdaBMError, match=line), users_code(None, "Net fails"):
        Choosing()(IMAGES)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        AdaBMError("own words"),
    ],
)
def test_what_is_no_mistake_of_the_network_passes(error):
    with pytest.raises(type(error)) as caught:
        failing(error)
    assert caught.value is error


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (
            AttributeMistake,
            r"blocks\.0 \(_AttributeMistake\) raises AttributeError: .*'activation'",
        ),
        (AssertionMistake, r"blocks\.0 \(_AssertionMistake\) raises AssertionError: 64 features"),
    ],
)
def test_a_mistake_in_a_network_is_found_as_it_is_quantized(network, text):
    with pytest.raises(AdaBMError, match=rf"{text}.* \(\S*users_networks\.py:\d+\)"):
        quantize(network(), IMAGES[:1])


def test_a_size_that_fails_later_is_reported_with_its_place():
    net = calibrate(quantize(OddSizes(), IMAGES[:1], recipe="static"), [IMAGES])
    line = (
        r"^OddSizes cannot be run on an image of shape \(1, 3, 31, 29\): "
        r"IndexError: index 32 .*users_networks\.py:\d+\)$"
    )
    with torch.no_grad(), pytest.raises(AdaBMError, match=line):
        net(torch.rand(1, 3, 31, 29))


@pytest.mark.parametrize(
    ("network", "given"),
    [
        (GivesVectors, "a tuple of Tensor, Tensor"),
        (GivesDict, "a dictionary of 'sr'"),
        (GivesNone, "nothing"),
        (GivesVector, r"torch.float32 of shape \(1, 3\)"),
        (IntegerOutput, r"torch.uint8 of shape \(1, 3, 48, 48\)"),
    ],
)
def test_what_is_no_image_is_rejected(network, given):
    with pytest.raises(AdaBMError, match=rf"gives {given} instead of one image: its forward must"):
        quantize(network(), IMAGES[:1])


def test_what_fails_with_gradients_alone_says_so():
    net = calibrate(quantize(WithNumpy(), IMAGES[:1], recipe="static"), [IMAGES])
    with torch.no_grad():
        net(IMAGES)
    with pytest.raises(AdaBMError, match=r"numpy.*\); it may run under torch\.no_grad\(\)$"):
        net(IMAGES)


@pytest.mark.parametrize("part", ["the network", "blocks.1"])
def test_torchscript_is_refused_by_name(part):
    network = Smooth().eval()
    if part == "blocks.1":
        network.blocks[1] = torch.jit.script(network.blocks[1])
    else:
        network = torch.jit.trace(network, IMAGES[:1])
    with pytest.raises(AdaBMError, match=rf"^{part} is made by TorchScript .*was made of$"):
        quantize(network, IMAGES[:1])
