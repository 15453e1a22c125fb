"""Rewrites of clips: before or after the rounding, as floats or as integers."""

from __future__ import annotations

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.editing import QUANTIZE, EditedGraph, set_scales
from adabm_basicsr.deployment.onnx.matching import (
    CLIP,
    MAXIMUM,
    MINIMUM,
    is_of_channels,
    of_channels,
)

TOP = np.iinfo(np.uint8).max


def drop_clips(edited: EditedGraph) -> None:
    """Take out clips to 0..255 of what is uint8 anyway."""
    for clip in edited.of_type(CLIP):
        if not _has_ends(edited, clip):
            continue
        lowest, highest = (edited.constant(name) for name in clip.input[1:])
        if lowest.dtype == np.uint8 and lowest == 0 and highest == TOP:
            edited.bypass(clip)


def clip_first(edited: EditedGraph) -> None:
    """Clip what isn't fused as floats, before it is quantized, rather than as integers after it.

    OpenVINO computes that in one go; ONNX Runtime takes two more passes over larger numbers for it.
    What a convolution alone makes for one scale is fused, and stays::

        before:  x -> QuantizeLinear -> Clip(0, top)
        after:   x -> Max(lowest) -> Min(highest) -> QuantizeLinear

    Channels that have ranges of their own are clipped as floats anyway. Where a multiplication of
    channels stands before a clip, the quantization takes it over: where all three stand in a row,
    OpenVINO 2026.4 errs, it clips with the ends of other channels.
    """
    for quantize in edited.of_type(QUANTIZE):
        source = edited.maker(quantize.input[0])
        if edited.only_taker(quantize.input[0]) is None:
            # What else takes it, such as the network after a ReLU6 of its own, needs it as it is.
            source = None
        if source is not None and source.op_type == MINIMUM:
            _absorb_factors_before_ends(edited, quantize, source)
        elif source is not None and _has_ends(edited, source):
            lowest, highest = _take_out_clip_before(edited, quantize, source)
            _insert_ends(edited, quantize, of_channels(lowest), of_channels(highest))
        elif not _may_be_fused(edited, quantize):
            lowest, highest = _take_out_clip_after(edited, quantize)
            _insert_ends(edited, quantize, of_channels(lowest), of_channels(highest))
        elif source is not None and _is_product_of_features(edited, source):
            _clip_features(edited, quantize, source)


def _has_ends(edited: EditedGraph, node: onnx.NodeProto) -> bool:
    """Whether a node clips to two constants; a network's own may clip to one."""
    ends = node.input[1:]
    return node.op_type == CLIP and len(ends) == 2 and all(map(edited.is_constant, ends))


def _may_be_fused(edited: EditedGraph, quantize: onnx.NodeProto) -> bool:
    """Whether a quantization can be part of the convolution before it."""
    has_one_scale = edited.scales_of(quantize).size == 1
    return has_one_scale and edited.only_taker(quantize.input[0]) is not None


def _is_product_of_features(edited: EditedGraph, node: onnx.NodeProto) -> bool:
    """Whether a node multiplies the features before a linear layer by factors of their own."""
    if node.op_type != "Mul" or not edited.is_constant(node.input[1]):
        return False
    return edited.constant_of(node, 1).ndim == 1 and edited.constant_of(node, 1).size > 1


def _clip_features(edited: EditedGraph, quantize: onnx.NodeProto, product: onnx.NodeProto) -> None:
    """Clip the input of a linear layer before it is quantized, each feature by itself.

    Behind a ReLU and such a product, OpenVINO 2026.4 doesn't clip what it quantizes for a matrix
    product where the CPU has VNNI. A clip to the same ends for all features would be left out too.
    """
    features = edited.constant_of(product, 1).size
    lowest, highest = _take_out_clip_after(edited, quantize)
    _insert_ends(edited, quantize, lowest.repeat(features), highest.repeat(features))


def _insert_ends(
    edited: EditedGraph, quantize: onnx.NodeProto, lowest: np.ndarray, highest: np.ndarray
) -> None:
    for kind, end in ((MAXIMUM, lowest), (MINIMUM, highest)):
        constant = edited.add_constant(end)
        edited.insert(kind, [constant], quantize, f"{quantize.output[0]}_{kind}")


def _take_out_clip_after(
    edited: EditedGraph, quantize: onnx.NodeProto
) -> tuple[np.ndarray, np.ndarray]:
    """Take out the integer clip that follows a quantization; its ends as values of the input."""
    scale = edited.scales_of(quantize).astype(np.float32)
    zeros = edited.zeros_of(quantize)
    zero = zeros.astype(np.float32)
    bottom = np.iinfo(zeros.dtype).min
    top: int | np.ndarray = np.iinfo(zeros.dtype).max
    clip = edited.only_taker(quantize.output[0])
    if clip is not None and clip.op_type == CLIP:
        top = edited.constant_of(clip, 2)
        edited.bypass(clip)
    return (bottom - zero) * scale, (top - zero) * scale


def _take_out_clip_before(
    edited: EditedGraph, quantize: onnx.NodeProto, clip: onnx.NodeProto
) -> tuple[np.ndarray, np.ndarray]:
    """Take out the clip before a quantization, and factors of channels before it; its ends."""
    lowest = edited.constant_of(clip, 1)
    highest = edited.constant_of(clip, 2)
    product = edited.maker(clip.input[0])
    edited.bypass(clip)
    factors = _take_factors(edited, quantize, product)
    if factors is None:
        return lowest, highest
    return lowest / factors, highest / factors


def _absorb_factors_before_ends(
    edited: EditedGraph, quantize: onnx.NodeProto, minimum: onnx.NodeProto
) -> None:
    """Take out a multiplication of channels before maximum and minimum.

    ::

        before:  x -> Mul(factors) -> Max(lowest) -> Min(highest) -> QuantizeLinear(scale)
        after:   x -> Max(lowest / factors) -> Min(highest / factors)
                   -> QuantizeLinear(scale / factors)
    """
    maximum = edited.maker(minimum.input[0])
    if maximum is None or maximum.op_type != MAXIMUM:
        return
    clips = [maximum, minimum]
    if not all(edited.is_constant(clip.input[1]) for clip in clips):
        return
    if edited.only_taker(maximum.output[0]) is None:
        return
    product = edited.maker(maximum.input[0])
    factors = _take_factors(edited, quantize, product)
    if factors is None:
        return
    for clip in clips:
        end = edited.constant_of(clip, 1)
        edited.give_constant(clip, 1, end / of_channels(factors))


def _take_factors(
    edited: EditedGraph, quantize: onnx.NodeProto, product: onnx.NodeProto | None
) -> np.ndarray | None:
    """Let the scales of a quantization take over the factors of a multiplication of channels.

    Returns:
        The factors, ``(C,)``; None where there are none that can be taken over.
    """
    if product is None or product.op_type != "Mul" or not edited.is_constant(product.input[1]):
        return None
    scale = edited.scales_of(quantize)
    if scale.size > 1:
        # The scales of channels stand here already, so the factors are the network's own.
        return None
    factors = edited.constant_of(product, 1)
    if not is_of_channels(product, factors) or factors.min() <= 0:
        return None
    if edited.only_taker(product.output[0]) is None:
        return None
    factors = factors.flatten()
    edited.bypass(product)
    zeros = edited.zeros_of(quantize).repeat(len(factors))
    set_scales(edited, quantize, scale / factors, zeros)
    return factors
