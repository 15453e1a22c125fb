"""Memory of networks with attention over the whole image."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_networks import GlobalAttention, Interpolating
from torch import nn

from adabm_basicsr.quantization.measures.memory import (
    estimate_bytes,
    forward_bytes,
    within_memory,
)

TESTS = Path(__file__).parents[2]
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MEASURE = f"""
import sys

sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "benchmarks")!r}]
import torch
from machine import peak_bytes
from small_networks import GlobalAttention

from adabm_basicsr import calibrate, finetune, quantize, summarize

torch.manual_seed(0)
network = GlobalAttention().eval()
patches = torch.rand(8, 3, 64, 64)
network(patches[:1, :, :8, :8]).sum().backward()
idle = peak_bytes()
if sys.argv[1] == "itself":
    network(patches[:1]).sum().backward()
else:
    net = quantize(network, patches[:1, :, :48, :48], w_bits=8, a_bits=8, recipe="fast")
    calibrate(net, [patches])
    summarize(net, patches)
    finetune(net, [patches[:2], patches[2:4]], iterations_per_epoch=1)
print(peak_bytes() - idle)
"""


def test_bytes_are_those_of_tensors_that_live_at_once():
    image = torch.zeros(1, 1, 10, 10)
    assert forward_bytes(lambda x: ((x + 1) + 1) + 1, image) == 2 * 400
    assert forward_bytes(lambda x: (x + 1).flatten().view(1, 1, 100), image) == 400


def test_large_images_are_estimated_from_small_ones():
    for network in (GlobalAttention(), Interpolating(2)):
        image = torch.rand(1, 3, 80, 80)
        actual = forward_bytes(network, image)
        assert estimate_bytes(network, image) == pytest.approx(actual, rel=0.2)


def test_long_clips_are_estimated_from_a_few_frames():
    clip = torch.rand(1, 20, 3, 80, 80)
    seen = []

    def by_frame(frames):
        seen.append(frames.shape)
        return torch.stack([(frame + 1) + 1 for frame in frames.unbind(1)], 1)

    estimated = estimate_bytes(by_frame, clip)
    assert max(shape[1] for shape in seen) < 20
    assert estimated == pytest.approx(forward_bytes(by_frame, clip), rel=0.2)


def test_centres_are_taken_where_memory_grows_with_the_square():
    assert within_memory(Interpolating(2), IMAGES) is IMAGES
    centres = within_memory(GlobalAttention(), IMAGES)
    assert torch.equal(centres, IMAGES[:, :, 16:48, 16:48])
    # Not without end.
    hungry = nn.Upsample(scale_factor=60)
    assert within_memory(hungry, IMAGES[:, :, :40, :40]).shape == (2, 3, 20, 20)


def peak(what):
    command = [sys.executable, "-c", MEASURE, what]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_at_most_three_times_that_of_one_patch():
    assert peak("all") <= 3 * peak("itself")
