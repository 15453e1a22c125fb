"""Step 2: bit-aware clipping (BaC), which fits each activation range to the bits that its layer got."""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.quantization.calibration.observers import search_range
from adabm_basicsr.quantization.calibration.visits import visit_in_order
from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer


@torch.no_grad()
def clip(net: QuantizedNetwork, images: Tensor) -> QuantizedNetwork:
    """Move each activation range halfway to the one of smallest error at the layer's bits.

    Layers are searched in execution order, each on its already quantized input, at base bits plus layer factor; 8-bit
    layers are left alone.

    Args:
        net: The calibrated network; changed in place.
        images: One batch of LR images, ``(B, C, H, W)`` in 0..1; of several processes each its own part of it.

    Returns:
        ``net``.

    Raises:
        AdaBMError: ``net`` hasn't been calibrated.
    """
    quantizers = [
        quantizer
        for quantizer in net.activation_quantizers().values()
        if quantizer.bits < FIXED_BITS
    ]
    visit_in_order(net, quantizers, images, _search, "Clipping search")
    net.stage.fill_(Stage.CLIPPED)
    return net


def _search(quantizer: ActivationQuantizer, x: Tensor) -> None:
    bits = quantizer.clamped_bits_of_layer()
    best = search_range(
        quantizer.in_common_range(x),
        quantizer.lower,
        quantizer.upper,
        bits,
        quantizer.integer,
        shared=True,
    )
    quantizer.lower.mul_(0.5).add_(0.5 * best[:1])
    quantizer.upper.mul_(0.5).add_(0.5 * best[1:])
