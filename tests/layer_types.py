"""Every type of layer that is quantized, with what layers of that type may be set to."""

import torch
from torch import nn

LAYERS = {
    "conv": lambda: nn.Conv2d(8, 6, 3, padding=1),
    "stride and dilation": lambda: nn.Conv2d(
        8, 6, (3, 5), stride=2, padding=(1, 4), dilation=(1, 2)
    ),
    "same": lambda: nn.Conv2d(8, 6, 4, padding="same"),
    "reflect": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(8, 6, 3, padding=2, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
    "groups": lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, output_padding=1),
    "transposed, groups": lambda: nn.ConvTranspose2d(8, 12, 3, groups=4),
}
X = torch.randn(2, 8, 12, 14, generator=torch.Generator().manual_seed(0))


def network_of(layer):
    """Something before and after the layer, so that it is the body."""
    out_channels = layer(X).shape[1]
    return nn.Sequential(nn.Conv2d(8, 8, 1), layer, nn.Conv2d(out_channels, 8, 1))
