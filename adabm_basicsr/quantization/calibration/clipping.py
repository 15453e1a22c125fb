"""Step 2, bit-aware clipping (BaC): fits each activation range to the bits that its layer got."""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.quantization.calibration.observers import search_range
from adabm_basicsr.quantization.calibration.visits import visit_in_order
from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.precision import full_float32
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer

SHARE_OF_BEST = 0.5  # how far a range moves to the one that errs least


@full_float32()
@torch.no_grad()
def clip(net: QuantizedNetwork, images: Tensor) -> QuantizedNetwork:
    """Move each activation range halfway to the one of smallest error at the layer's bits.

    Candidates are ``[l, u] * (1 - 0.01 i)``, ``i = 0 .. 99``, at base bits plus layer factor; then
    ``l, u = 0.5 * old + 0.5 * best``. Layers are searched in execution order, each on its already
    quantized input. 8-bit layers are left alone.

    Args:
        net: The calibrated network; changed in place.
        images: One batch of LR images, ``(B, C, H, W)`` in 0..1; of several processes each its own
            part of it.

    Returns:
        ``net``.

    Raises:
        AdaBMError: ``net`` hasn't been calibrated.
    """
    quantizers = []
    for quantizer in net.activation_quantizers().values():
        if quantizer.bits < FIXED_BITS:
            quantizers.append(quantizer)
    visit_in_order(net, quantizers, images, _keep_values, _clip_quantizer, "Clipping search")
    net.reach(Stage.CLIPPED)
    return net


def _keep_values(quantizer: ActivationQuantizer, x: Tensor, calls: int) -> Tensor:
    # A copy, as the network may change them in place.
    return quantizer.in_common_range(x).flatten().clone()


def _clip_quantizer(quantizer: ActivationQuantizer, values: list[Tensor]) -> None:
    lower, upper = search_range(
        torch.cat(values),
        quantizer.lower,
        quantizer.upper,
        quantizer.clamped_bits_of_layer(),
        quantizer.integer,
        shared=True,
    )
    quantizer.lower.mul_(1 - SHARE_OF_BEST).add_(SHARE_OF_BEST * lower)
    quantizer.upper.mul_(1 - SHARE_OF_BEST).add_(SHARE_OF_BEST * upper)
