"""Work-arounds that are seen from outside."""

import subprocess
import sys

import pytest
import torch
from basicsr.archs.basicvsrpp_arch import BasicVSRPlusPlus

COUNT = """
import resource, sys
import torch
from torch import nn
from adabm_basicsr.environment import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
network = nn.Sequential(
    nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1)
)
image = torch.rand(1, 3, 768, 768)  # feature maps of 38 MB
for step in range(12):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(image).mean().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    keep, plain = (
        int(
            subprocess.run(
                [sys.executable, "-c", COUNT, mode], check=True, stdout=subprocess.PIPE
            ).stdout
        )
        for mode in ("keep", "plain")
    )
    assert keep < plain / 4  # pages that the system had to map anew


def test_a_clip_that_stands_still_changes_no_later_one():
    net = BasicVSRPlusPlus(mid_channels=8, num_blocks=1)
    moving = torch.rand(1, 2, 3, 8, 8)
    net.check_if_mirror_extended(moving[:, :1].expand_as(moving))
    assert net.is_mirror_extended
    net.check_if_mirror_extended(moving)
    assert not net.is_mirror_extended


def test_warping_by_flow_prints_no_warning():
    warp = (
        "import adabm_basicsr, torch\n"
        "from basicsr.archs.arch_util import flow_warp\n"
        "flow_warp(torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, 2))"
    )
    ran = subprocess.run([sys.executable, "-c", warp], check=True, capture_output=True, text=True)
    assert "meshgrid" not in ran.stderr
