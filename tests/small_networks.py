"""Small networks whose head, body and tail are plain to see."""

import torch
import torch.nn.functional as F
from torch import nn

EXAMPLE = torch.zeros(1, 3, 24, 24)


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)

    def forward(self, x):
        return x + self.b(F.relu(self.a(x)))


class Interpolating(nn.Module):
    """Upsamples without a layer, as RRDBNet does."""

    def __init__(self, blocks):
        super().__init__()
        self.first = conv(3, 8)
        self.blocks = nn.Sequential(*[Block() for _ in range(blocks)])
        self.after, self.up, self.last = conv(8, 8), conv(8, 8), conv(8, 3)

    def forward(self, x):
        x = self.first(x)
        x = x + self.after(self.blocks(x))
        return self.last(self.up(F.interpolate(x, scale_factor=2)))


class SharedByBranches(nn.Module):
    """A pair of layers runs on two branches, the second of which is five times as loud."""

    def __init__(self):
        super().__init__()
        self.first = conv(3, 8)
        self.a, self.b = conv(8, 8), conv(8, 8)
        self.last = conv(8, 12)

    def shared(self, x):
        return self.b(F.relu(self.a(x)))

    def forward(self, image):
        x = self.first(image)
        y = self.shared(x) + self.shared(5 * x.flip(1))
        return F.pixel_shuffle(self.last(x + y), 2) + F.interpolate(image, scale_factor=2)


class Recursive(nn.Module):
    """One block that runs four times."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = conv(3, 8), Block(), conv(8, 12)

    def forward(self, image):
        x = self.first(image)
        for _ in range(4):
            x = self.block(x)
        return F.pixel_shuffle(self.last(x), 2) + F.interpolate(image, scale_factor=2)


class AttentionBlock(nn.Module):
    """Attention of each pixel to all others."""

    def __init__(self, features):
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.qkv, self.project = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x):
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        attention = (query @ key.transpose(1, 2) * x.shape[1] ** -0.5).softmax(dim=-1)
        mixed = self.project(attention @ value)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class GlobalAttention(nn.Module):
    """Takes memory in proportion to the square of an image's pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.last = conv(3, 16), conv(16, 12)
        self.blocks = nn.Sequential(AttentionBlock(16), AttentionBlock(16))

    def forward(self, image):
        return F.pixel_shuffle(self.last(self.blocks(self.first(image))), 2)


class DeadAttention(nn.Module):
    """Channel attention whose squeezed channel is zero for every image."""

    def __init__(self):
        super().__init__()
        self.first, self.last = conv(3, 8), conv(8, 12)
        self.squeeze, self.expand = nn.Conv2d(8, 1, 1), nn.Conv2d(1, 8, 1)
        nn.init.constant_(self.squeeze.bias, -10)

    def forward(self, image):
        x = self.first(image).relu()
        squeezed = self.squeeze(x.mean((2, 3), keepdim=True)).relu()
        return F.pixel_shuffle(self.last(x * self.expand(squeezed).sigmoid()), 2)
