"""The Python entry point: quantize any network without BasicSR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from adabm_basicsr.errors import check_keys
from adabm_basicsr.quantization.calibration.analysis import Analysis, analyse_network
from adabm_basicsr.quantization.config import QuantizationConfig
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.preparation import copy_of


def quantize(network: nn.Module, example: Tensor, **options: Any) -> QuantizedNetwork:
    """A quantized copy of a super-resolution network, to be calibrated next.

    Args:
        network: Maps ``(B, C, H, W)`` in 0..1 to an image; left as it is.
        example: An input of ``network``, ``(1, C, H, W)``; only its shape, type and device matter.
        **options: Fields of `QuantizationConfig`: ``w_bits``, ``a_bits``, ``recipe``,
            ``fully_quantized``, ...

    Returns:
        The quantized network. Calibrate it before use.

    Raises:
        AdaBMError: An option is unknown or out of range, or nothing can be quantized.
    """
    return QuantizedNetwork(copy_of(network), make_config(options), example)


def analyse(network: nn.Module, images: Tensor, **options: Any) -> Analysis:
    """What quantization would come to, estimated before anything is fitted or trained.

    Args:
        network: Maps ``(B, C, H, W)`` in 0..1 to an image; left as it is.
        images: LR images, ``(B, C, H, W)`` in 0..1; a few patches do.
        **options: Fields of `QuantizationConfig`, as for `quantize`.

    Returns:
        Sensitivity of each layer, estimated self-PSNR and cost by bits, and what to choose.

    Raises:
        AdaBMError: An option is unknown or out of range, nothing can be quantized, or images aren't
            finite.
    """
    return analyse_network(quantize(network, images[:1], **options), [images])


def make_config(options: Mapping[str, Any]) -> QuantizationConfig:
    """`QuantizationConfig` from options by name; those that are None keep their default.

    Raises:
        AdaBMError: An option is unknown or out of range.
    """
    check_keys("network_g", options, [field.name for field in fields(QuantizationConfig)])
    given = {}
    for key, value in options.items():
        if value is not None:
            given[key] = value
    return QuantizationConfig(**given)
