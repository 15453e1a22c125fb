"""Brings the graph of one level into the form that runtimes fuse; what it computes stays the same.

Runtimes write integers straight from a convolution if a quantization with one scale follows it. What keeps them from
it:

- a pixel shuffle or an enlargement between the two, which commutes with everything that treats all pixels alike;
- scales of input channels (see `equalise`), which the convolution before can have in its own output channels;
- clips to ranges that nothing leaves.

The last layer after a pixel shuffle has few output channels. It is computed before the shuffle, with a kernel for each
pixel that a position becomes: the largest tensor of the network is then never shuffled at all.
"""

from __future__ import annotations

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph, attribute
from adabm_basicsr.deployment.onnx.exact import add_up_integers, keep_order, round_first, set_scales

SHUFFLE, ENLARGE, CLIP, CONVOLVE = "DepthToSpace", "Resize", "Clip", "Conv"
ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu")
CLIPS = ("Max", "Min")  # in this order, where each channel has a range of its own
PER_CHANNEL = (QUANTIZE, CLIP, *CLIPS, DEQUANTIZE, *ACTIVATIONS, "Add", "Sub", "Mul", "Div")
LANES = 16  # output channels that kernels compute at once, needed or not


def fuse(model: onnx.ModelProto, runtime: str | None = None) -> onnx.ModelProto:
    """Rewrite the graph of one level, see `at_level`; changed in place.

    Args:
        model: The graph.
        runtime: A key of `OF_RUNTIMES` for the form that is the best in it; None, or another, for one for any runtime.
    """
    edited = EditedGraph(model)
    for rewrite in (*REWRITES, *OF_RUNTIMES.get(runtime, ANY_RUNTIME)):
        rewrite(edited)
    edited.sort()
    return model


def _drop_clips(edited: EditedGraph) -> None:
    for clip in edited.of_type(CLIP):
        if all(edited.is_constant(name) for name in clip.input[1:]) and len(clip.input) == 3:
            low, high = (edited.constant(name) for name in clip.input[1:])
            if low.dtype == np.uint8 and (low, high) == (0, np.iinfo(np.uint8).max):
                edited.bypass(clip)


def _enlarge_late(edited: EditedGraph) -> None:
    """Move each shuffle, and each enlargement that repeats pixels, behind what treats all pixels alike."""
    for node in edited.of_type(SHUFFLE, ENLARGE):
        if attribute(node, "mode") not in (b"CRD", b"nearest"):
            continue
        copies = attribute(node, "blocksize") ** 2 if node.op_type == SHUFFLE else 1
        while (taker := edited.only_taker(node.output[0])) and _is_per_channel(edited, node, taker):
            for at, name in enumerate(taker.input):
                if edited.is_constant(name):
                    taker.input[at] = _repeated(edited, name, copies)
            edited.swap(node, taker)


def _is_per_channel(edited: EditedGraph, node: onnx.NodeProto, taker: onnx.NodeProto) -> bool:
    others = [name for name in taker.input if name and name != node.output[0]]
    return taker.op_type in PER_CHANNEL and all(
        edited.is_constant(name) and _is_of_channels(taker, edited.constant(name))
        for name in others
    )


def _is_of_channels(node: onnx.NodeProto, value: np.ndarray) -> bool:
    """Whether a constant differs from channel to channel at most, not from pixel to pixel."""
    axis = 0 if node.op_type in (QUANTIZE, DEQUANTIZE) else value.ndim - 3
    return value.size == 1 or (axis >= 0 and value.shape[axis] == value.size)


def _repeated(edited: EditedGraph, name: str, copies: int) -> str:
    """A constant for channels of which each has become several, one behind the other."""
    value = edited.constant(name)
    if value.size == 1 or copies == 1:
        return name
    return edited.add_constant(value.repeat(copies, int(np.argmax(value.shape))))


def _convolve_early(edited: EditedGraph) -> None:
    """Compute layers before the shuffle that they follow, where that takes no more work."""
    for shuffle in edited.of_type(SHUFFLE):
        conv, block = edited.only_taker(shuffle.output[0]), attribute(shuffle, "blocksize")
        constants = _constants_of(edited, conv) if conv and _slides_over_all(conv) else []
        if not constants or attribute(shuffle, "mode") != b"CRD":
            continue
        (owner, at), *others = constants
        weight = edited.constant(owner.input[at])
        kernel = unshuffled_kernel(weight, block)
        if _work(kernel) > block**2 * _work(weight):
            continue
        owner.input[at] = edited.add_constant(kernel)
        for node, at in others:
            node.input[at] = _repeated(edited, node.input[at], block**2)
        _set_size(conv, kernel.shape[-1])
        edited.swap(shuffle, conv)


def _constants_of(edited: EditedGraph, conv: onnx.NodeProto) -> list[tuple[onnx.NodeProto, int]]:
    """Inputs of which nodes a convolution's weight, steps and bias are, the weight first; empty if others use them."""
    bias = [(conv, 2)] if len(conv.input) > 2 else []
    if edited.is_constant(conv.input[1]):
        return [(conv, 1), *bias]
    maker = edited.maker(conv.input[1])
    usable = (
        maker.op_type == DEQUANTIZE
        and edited.is_constant(maker.input[0])
        and edited.only_taker(maker.output[0])
    )
    return [(maker, 0), (maker, 1), *bias] if usable else []


def _slides_over_all(conv: onnx.NodeProto) -> bool:
    """Whether a node is a convolution of all channels with zeros around that keeps the size."""
    if conv.op_type != CONVOLVE or attribute(conv, "group", 1) != 1:
        return False
    size = attribute(conv, "kernel_shape")[0]
    wanted = {
        "kernel_shape": [size] * 2,
        "pads": [size // 2] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
    }
    return size % 2 == 1 and all(attribute(conv, name) == value for name, value in wanted.items())


def unshuffled_kernel(weight: np.ndarray, block: int) -> np.ndarray:
    """Weights of the convolution before a pixel shuffle that equals one behind it.

    Args:
        weight: ``(O, C, K, K)``, K odd, of the convolution behind the shuffle.
        block: Factor of the shuffle, ``r``.

    Returns:
        ``(O r^2, C r^2, L, L)``, L odd.
    """
    outputs, inputs, size = weight.shape[:3]
    padding = -(-(size // 2) // block)
    kernel = np.zeros(
        (outputs, block, block, inputs, block, block, *[2 * padding + 1] * 2), weight.dtype
    )
    for row, column, y, x in np.ndindex(block, block, size, size):
        (to_y, from_y), (to_x, from_x) = (
            divmod(at - size // 2, block) for at in (row + y, column + x)
        )
        kernel[:, row, column, :, from_y, from_x, padding + to_y, padding + to_x] = weight[
            :, :, y, x
        ]
    return kernel.reshape(outputs * block**2, inputs * block**2, *kernel.shape[-2:])


def _set_size(conv: onnx.NodeProto, size: int) -> None:
    for own in conv.attribute:
        if own.name in ("kernel_shape", "pads"):
            value = size if own.name == "kernel_shape" else size // 2
            own.ints[:] = [value] * len(own.ints)


def _work(weight: np.ndarray) -> int:
    """Products at each position, with output channels rounded up to what kernels compute at once."""
    return -(-len(weight) // LANES) * LANES * weight[0].size


def _absorb_scales(edited: EditedGraph) -> None:
    """Let the convolution before a quantization divide by the scales of its channels, so that one scale is left."""
    for quantize in edited.of_type(QUANTIZE):
        scales, zeros = (edited.constant(name) for name in quantize.input[1:3])
        conv, clips = _convolution_before(edited, quantize)
        constants = (
            _constants_of(edited, conv) if conv and scales.size > 1 and not np.ptp(zeros) else []
        )
        if not constants:
            continue
        relative = scales / scales.max()
        for node, at in constants:
            value = edited.constant(node.input[at])
            if value.dtype == np.float32:  # integers stay as they are, their steps change
                node.input[at] = edited.add_constant(
                    value / relative.reshape(-1, *[1] * (value.ndim - 1))
                )
        for clip in clips:
            clip.input[1] = edited.add_constant(
                edited.constant(clip.input[1]) / relative.reshape(-1, 1, 1)
            )
        set_scales(edited, quantize, scales.max(), zeros[0])


def _convolution_before(
    edited: EditedGraph, quantize: onnx.NodeProto
) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto]]:
    """The convolution whose output nothing but this quantization takes, and clips of channels between the two.

    Activation functions may stand between too.
    """
    name, clips = quantize.input[0], []
    while (maker := edited.maker(name)) is not None and edited.only_taker(name) is not None:
        if maker.op_type == CONVOLVE:
            return maker, clips
        if maker.op_type in CLIPS and edited.is_constant(maker.input[1]):
            clips.append(maker)
        elif maker.op_type not in ACTIVATIONS:
            break
        name = maker.input[0]
    return None, []


def _clip_first(edited: EditedGraph) -> None:
    """Clip what isn't fused as floats, before it is quantized, rather than as integers after it.

    OpenVINO computes that in one go; ONNX Runtime takes two more passes over larger numbers for it. Channels that have
    ranges of their own are clipped as floats anyway.
    """
    for quantize in edited.of_type(QUANTIZE):
        source = edited.maker(quantize.input[0])
        if source is not None and source.op_type == CLIPS[-1]:
            _absorb_product(edited, quantize, source)
            continue
        if source is not None and source.op_type == CLIP:
            ends = _ends_of_symmetric(edited, quantize, source)
        elif (
            edited.constant(quantize.input[1]).size > 1
            or edited.only_taker(quantize.input[0]) is None
        ):
            ends = _ends_of_integers(edited, quantize)
        else:
            continue  # part of the convolution before
        for kind, end in zip(("Max", "Min"), ends):
            _insert(edited, kind, quantize, end if end.size == 1 else end.reshape(-1, 1, 1))


def _ends_of_integers(edited: EditedGraph, quantize: onnx.NodeProto) -> list[np.ndarray]:
    """Where the clip that follows a quantization lies in its input; takes out the clip."""
    scale, zero = (edited.constant(name).astype(np.float32) for name in quantize.input[1:3])
    top, clip = np.iinfo(np.uint8).max, edited.only_taker(quantize.output[0])
    if clip is not None and clip.op_type == CLIP:
        top = edited.constant(clip.input[2])
        edited.bypass(clip)
    return [-zero * scale, (top - zero) * scale]


def _ends_of_symmetric(
    edited: EditedGraph, quantize: onnx.NodeProto, clip: onnx.NodeProto
) -> list[np.ndarray]:
    """Ends of the clip before a quantization; takes out the clip, and a multiplication of channels before it.

    Where all three stand in a row, OpenVINO 2026.4 errs: it clips with the ends of other channels.
    """
    ends, product = [edited.constant(name) for name in clip.input[1:]], edited.maker(clip.input[0])
    edited.bypass(clip)
    factors = _take_factors(edited, quantize, product)
    return ends if factors is None else [end / factors for end in ends]


def _absorb_product(edited: EditedGraph, quantize: onnx.NodeProto, least: onnx.NodeProto) -> None:
    """Take out a multiplication of channels before maximum and minimum, as `_ends_of_symmetric` does before a clip."""
    most = edited.maker(least.input[0])
    clips = [
        clip for clip in (most, least) if clip is not None and edited.is_constant(clip.input[-1])
    ]
    if len(clips) < 2 or most.op_type != CLIPS[0] or edited.only_taker(most.output[0]) is None:
        return
    factors = _take_factors(edited, quantize, edited.maker(most.input[0]))
    if factors is None:
        return
    for clip in clips:
        clip.input[1] = edited.add_constant(
            edited.constant(clip.input[1]) / factors.reshape(-1, 1, 1)
        )


def _take_factors(
    edited: EditedGraph, quantize: onnx.NodeProto, product: onnx.NodeProto | None
) -> np.ndarray | None:
    """Factors of a multiplication of channels, ``(C,)``, which goes over into the scales of ``quantize``; or None."""
    if product is None or product.op_type != "Mul" or not edited.is_constant(product.input[1]):
        return None
    if edited.constant(quantize.input[1]).size > 1:
        return None  # then it is the network's own, and the scales of channels stand in the quantization already
    factors = edited.constant(product.input[1])
    if (
        not _is_of_channels(product, factors)
        or factors.min() <= 0
        or edited.only_taker(product.output[0]) is None
    ):
        return None
    factors = factors.flatten()
    edited.bypass(product)
    scale, zero = (edited.constant(name) for name in quantize.input[1:3])
    set_scales(edited, quantize, scale / factors, zero.repeat(len(factors)))
    return factors


def _insert(edited: EditedGraph, kind: str, before: onnx.NodeProto, constant: np.ndarray) -> None:
    output = f"{before.output[0]}_{kind}"
    edited.add_node(kind, [before.input[0], edited.add_constant(constant)], output)
    before.input[0] = output


REWRITES = (_drop_clips, _enlarge_late, _convolve_early, _enlarge_late)
ANY_RUNTIME = (_absorb_scales,)
OF_RUNTIMES = {
    "openvino": (*ANY_RUNTIME, _clip_first, round_first, keep_order),
    # It is as fast with scales of channels where they are, and rounds as the simulation does then.
    "onnxruntime": (add_up_integers,),
}
