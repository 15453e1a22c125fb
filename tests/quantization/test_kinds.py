"""Networks as people write them, one small one of each kind: quantized whole, near to float."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import Recursive, conv
from torch import nn
from torch.utils.checkpoint import checkpoint
from users_networks import Body, network

from adabm_basicsr import calibrate, load_checkpoint, quantize, save_checkpoint
from adabm_basicsr.quantization.measures.coverage import measure_coverage

IMAGES = F.interpolate(
    torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)), size=(24, 24)
)


class Module(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def between(make):
    """A network with what ``make`` makes between the convolutions of its blocks."""

    class Kind(Body):
        def __init__(self):
            super().__init__()
            self.middle = make()

        def between(self, x):
            return self.middle(x)

    return network("Kind", Kind)


class Gate(nn.Module):
    """Weighs channels by what is pooled of them."""

    def __init__(self):
        super().__init__()
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.weigh(x)


class Halved(nn.Module):
    """A convolution at half of the size."""

    def __init__(self):
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x):
        return x + F.interpolate(self.conv(F.max_pool2d(x, 2)), size=x.shape[2:])


class LastNorm(nn.LayerNorm):
    """Of channels, which come first."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Windows(nn.Module):
    """A linear layer over the pixels of each window, rearranged as einops does it."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x):
        b, c, h, w = x.shape
        windows = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(4)
        mixed = self.mix(windows).unflatten(4, (4, 4))
        return mixed.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


KINDS = {
    "pooled": between(Gate),
    "pooled convolutions": between(Halved),
    "dilated": between(lambda: nn.Conv2d(8, 8, 3, padding=3, dilation=3)),
    "grouped": between(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2)),
    "depthwise": between(lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8)),
    "PReLU": between(lambda: nn.PReLU(8)),
    "layer norm": between(lambda: LastNorm(8)),
    "instance norm": between(lambda: nn.InstanceNorm2d(8, affine=True)),
    "rearranged": between(Windows),
    "recursive": Recursive,
    "checkpointed": between(
        lambda: Module(lambda x: checkpoint(torch.tanh, x, use_reentrant=False))
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_each_kind(kind, tmp_path):
    def quantized():
        torch.manual_seed(0)
        options = {"w_bits": 8, "a_bits": 8, "fully_quantized": True, "recipe": "static"}
        return quantize(KINDS[kind]().eval(), IMAGES[:1], **options)

    net = calibrate(quantized(), [IMAGES])
    coverage = measure_coverage(net)
    assert coverage.macs == pytest.approx(1)
    assert coverage.warning() is None
    save_checkpoint(net, tmp_path / "net.pth")
    again = load_checkpoint(quantized(), tmp_path / "net.pth")
    with torch.no_grad():
        output = net(IMAGES)
        with net.full_precision():
            full = net(IMAGES)
        assert torch.equal(again(IMAGES), output)
    noise = (output - full).square().mean()
    assert 10 * torch.log10(full.square().mean() / noise) >= 35
