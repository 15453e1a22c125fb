"""Brings the graph of one image class into a form that an engine fuses.

What the graph computes stays the same. Runtimes write integers straight from a convolution if a
quantization with one scale follows it. What keeps them from it:

- a pixel shuffle or an enlargement between the two (`shuffles`);
- scales of input channels, see `equalise`, which the convolution before can have in its own output
  channels (`absorb_scales`);
- clips to ranges that nothing leaves, or in the wrong place (`clips`).

`FORMS` says which rewrites make which form; a new one is an entry there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.clips import clip_first, drop_clips
from adabm_basicsr.deployment.onnx.editing import QUANTIZE, EditedGraph, set_scales
from adabm_basicsr.deployment.onnx.exact import (
    add_up_integers,
    fill_biases,
    keep_borders,
    keep_order,
    round_first,
)
from adabm_basicsr.deployment.onnx.integers import (
    drop_ones,
    drop_repeated,
    drop_unused,
    merge_equal,
    quantize_before_views,
    quantize_once,
    round_again,
    scale_integers,
    scale_layers,
    store_whole_biases,
)
from adabm_basicsr.deployment.onnx.matching import (
    ACTIVATIONS,
    CONVOLVE,
    MAXIMUM,
    MINIMUM,
    constants_of,
    of_channels,
)
from adabm_basicsr.deployment.onnx.shuffles import convolve_early, enlarge_late
from adabm_basicsr.quantization.engines import ALL_SUMS, CONCATENATIONS, RESIDUAL

Rewrite = Callable[[EditedGraph], None]


def absorb_scales(edited: EditedGraph) -> None:
    """Let the convolution before a quantization divide by the scales of its channels.

    One scale is left then, with which engines fuse the two. Activation functions, and clips of
    channels, may stand between::

        before:  Conv(w, b) -> QuantizeLinear(scales)
        after:   Conv(w / r, b / r) -> QuantizeLinear(max(scales)),  r = scales / max(scales)

    Integers of a weight stay as they are, their scales change.
    """
    for quantize in edited.of_type(QUANTIZE):
        scales = edited.scales_of(quantize)
        zeros = edited.zeros_of(quantize)
        if scales.size == 1 or zeros.min() != zeros.max():
            continue
        conv, clips = _convolution_before(edited, quantize)
        if conv is None:
            continue
        constants = constants_of(edited, conv)
        if not constants:
            continue
        relative = scales / scales.max()
        for slot in constants:
            value = edited.constant_of(*slot)
            if value.dtype == np.float32:
                view = [-1] + [1] * (value.ndim - 1)
                edited.give_constant(*slot, value / relative.reshape(view))
        for clip in clips:
            end = edited.constant_of(clip, 1)
            edited.give_constant(clip, 1, end / of_channels(relative))
        set_scales(edited, quantize, scales.max(), zeros[0])


def _convolution_before(
    edited: EditedGraph, quantize: onnx.NodeProto
) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto]]:
    """The convolution whose output nothing but a quantization takes, and clips between the two.

    Activation functions may stand between too. None and no clips where there is no such one.
    """
    clips: list[onnx.NodeProto] = []
    name = quantize.input[0]
    while edited.only_taker(name) is not None:
        maker = edited.maker(name)
        if maker is None:
            break
        if maker.op_type == CONVOLVE:
            return maker, clips
        if maker.op_type in (MAXIMUM, MINIMUM) and edited.is_constant(maker.input[1]):
            clips.append(maker)
        elif maker.op_type not in ACTIVATIONS:
            break
        name = maker.input[0]
    return None, []


ANY = "any"
# As others, with shuffles where the network has them.
UNMOVED = "openvino_unmoved"
CONCATENATIONS_UNMOVED = f"{CONCATENATIONS}_unmoved"
# Shuffles are moved again once layers were: what stood behind a layer may be next to them now.
ALWAYS: tuple[Rewrite, ...] = (drop_clips, enlarge_late, convolve_early, enlarge_late)
_OPENVINO: tuple[Rewrite, ...] = (
    absorb_scales,
    clip_first,
    round_first,
    keep_order,
    keep_borders,
    fill_biases,
)
_CONCATENATIONS: tuple[Rewrite, ...] = (
    drop_ones,
    scale_layers,
    quantize_before_views,
    quantize_once,
    merge_equal,
    drop_repeated,
    drop_unused,
    keep_borders,
    fill_biases,
)
FORMS: dict[str, tuple[Rewrite, ...]] = {
    ANY: (*ALWAYS, absorb_scales, keep_borders, fill_biases),
    "openvino": (*ALWAYS, *_OPENVINO),
    UNMOVED: (drop_clips, *_OPENVINO),
    # As fast with scales of channels where they are, and it rounds as the simulation does then.
    "onnxruntime": (*ALWAYS, add_up_integers),
    # For networks whose values are integers from layer to layer, by what is quantized of sums.
    ALL_SUMS: (
        drop_ones,
        scale_integers,
        quantize_before_views,
        quantize_once,
        merge_equal,
        drop_unused,
        keep_borders,
        round_again,
        fill_biases,
        store_whole_biases,
    ),
    CONCATENATIONS: (*ALWAYS, *_CONCATENATIONS),
    CONCATENATIONS_UNMOVED: _CONCATENATIONS,
    RESIDUAL: (
        drop_ones,
        scale_layers,
        quantize_once,
        merge_equal,
        drop_unused,
        round_again,
    ),
}


def fuse(model: onnx.ModelProto, form: str = ANY) -> onnx.ModelProto:
    """Rewrite the graph of one image class, see `at_level`; changed in place.

    Args:
        model: The graph.
        form: A key of `FORMS`.
    """
    edited = EditedGraph(model)
    for rewrite in FORMS[form]:
        rewrite(edited)
    edited.sort()
    return model
