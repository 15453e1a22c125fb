"""Modules of a frozen network in forms that ONNX and its exporter have.

They compute the same.
"""

from __future__ import annotations

import torch
from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)
SAME = "same"


def write_plainly(network: nn.Module) -> None:
    """Bring the modules of ``network`` into forms that can be written; changed in place."""
    _use_running_statistics(network)
    _give_weights(network)
    _write_out_padding(network)


def _use_running_statistics(network: nn.Module) -> None:
    """Write instance norms that have statistics as the batch norms that they are then.

    ONNX has instance norms that compute statistics alone.
    """
    for parent in list(network.modules()):
        for key, norm in list(parent.named_children()):
            if not isinstance(norm, nn.InstanceNorm2d) or norm.running_mean is None:
                continue
            batch_norm = nn.BatchNorm2d(norm.num_features, norm.eps, affine=norm.affine)
            batch_norm.load_state_dict(norm.state_dict())
            setattr(parent, key, batch_norm.eval().requires_grad_(False))


def _give_weights(network: nn.Module) -> None:
    """Give norms that have no weights some that change nothing.

    Otherwise the exporter makes them, and can't where it doesn't know the number of channels, such
    as behind an enlargement to the size of another tensor.
    """
    for norm in network.modules():
        if isinstance(norm, NORMS) and norm.weight is None:
            norm.weight = nn.Parameter(torch.ones(norm.num_features), requires_grad=False)
            norm.bias = nn.Parameter(torch.zeros(norm.num_features), requires_grad=False)


def _write_out_padding(network: nn.Module) -> None:
    """Say how wide the padding ``same`` is; ONNX Runtime has none of that name with dilation."""
    for conv in network.modules():
        if not isinstance(conv, nn.Conv2d) or conv.padding != SAME or conv.padding_mode != "zeros":
            continue
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        if left == right and top == bottom:
            conv.padding = (top, left)
        else:
            # Only a padding before the convolution may have sides of different widths.
            conv.padding_mode = "constant"  # type: ignore[assignment]
