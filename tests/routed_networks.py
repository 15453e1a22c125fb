"""Networks whose weights decide what runs; fresh ones take other paths than trained ones."""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from small_networks import Block, conv
from torch import nn


class Routed(nn.Module):
    """``first``, something that weights decide, ``last``, at twice the size."""

    def __init__(self):
        super().__init__()
        self.first, self.last = conv(3, 8), conv(8, 12)

    def middle(self, x):
        raise NotImplementedError

    def forward(self, x):
        return F.pixel_shuffle(self.last(self.middle(self.first(x))), 2)


@ARCH_REGISTRY.register()
class Experts(Routed):
    """A mixture of experts: that of the highest score runs."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(Block(), Block()) for _ in range(3))
        self.scores = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

    def middle(self, x):
        return self.experts[int(self.scores.argmax())](x)


@ARCH_REGISTRY.register()
class StochasticDepth(Routed):
    """Blocks that are dropped where their learned chance to survive is small."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.survival = nn.Parameter(torch.tensor([3.0, 3.0, -3.0, -3.0]))

    def middle(self, x):
        for block, survival in zip(self.blocks, self.survival, strict=True):
            if survival.sigmoid() > 0.5:
                x = block(x)
        return x


@ARCH_REGISTRY.register()
class Gated(Routed):
    """A branch that a gate opens."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.branch = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), conv(8, 8))
        self.gate = nn.Parameter(torch.zeros(1))

    def middle(self, x):
        x = self.blocks(x)
        if self.gate > 0:
            x = x + self.gate * self.branch(x)
        return x


def trained(kind):
    """Such a network whose weights lead another way than fresh ones."""
    net = kind().eval()
    with torch.no_grad():
        if kind is Experts:
            net.scores.copy_(torch.tensor([0.0, 0.0, 1.0]))
        elif kind is StochasticDepth:
            net.survival.neg_()
        else:
            net.gate.fill_(0.5)
    return net


# Of each network, a layer that only the trained one runs.
TRAINED_LAYERS = {
    Experts: "experts.2.0.a",
    StochasticDepth: "blocks.3.b",
    Gated: "branch.0",
}
