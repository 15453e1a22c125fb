"""The six networks of BasicSR that take clips, small, and clips for them."""

import torch
import torch.nn.functional as F
from architectures import VIDEO_ARCHITECTURES
from basicsr.archs import build_network
from torch import nn

from adabm_basicsr import quantize

# Frames, height, width, and what both are multiples of.
CLIPS = {
    "BasicVSR": (3, 34, 36, 1),
    "IconVSR": (5, 36, 36, 4),
    "BasicVSR++": (2, 64, 64, 1),
    "EDVR": (5, 16, 20, 4),
    "DUF": (7, 8, 12, 1),
    "TOFlow": (7, 16, 32, 16),
}
BITS = {"w_bits": 8, "a_bits": 8, "fully_quantized": True}


def clip(name, seed=0):
    """A smooth clip of a size that the network takes."""
    frames, height, width, _ = CLIPS[name]
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 6, 6, generator=generator)
    frames = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return frames.unsqueeze(0)


def built(name, seed=0):
    """The network; its flow estimation, whose size has no option, is made thin."""
    torch.manual_seed(seed)
    network = build_network(dict(VIDEO_ARCHITECTURES[name])).eval()
    for module in getattr(network, "spynet", nn.Module()).modules():
        if hasattr(module, "basic_module") and isinstance(module.basic_module, nn.Sequential):
            module.basic_module = nn.Sequential(nn.Conv2d(8, 2, 3, padding=1))
    return network


def quantized(name, recipe="static", seed=0, **options):
    options = {**BITS, "size_multiple": CLIPS[name][3], "recipe": recipe, **options}
    return quantize(built(name, seed), clip(name), **options)
