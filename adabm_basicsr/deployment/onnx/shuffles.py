"""Rewrites around what enlarges an image: pixel shuffles, and enlargements that repeat pixels."""

from __future__ import annotations

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.editing import (
    DEQUANTIZE,
    QUANTIZE,
    EditedGraph,
    attribute,
)
from adabm_basicsr.deployment.onnx.matching import (
    ACTIVATIONS,
    CLIP,
    CONVOLVE,
    MAXIMUM,
    MINIMUM,
    constants_of,
    is_of_channels,
)

SHUFFLE = "DepthToSpace"
ENLARGE = "Resize"
PIXEL_SHUFFLE = b"CRD"  # mode in which `SHUFFLE` is torch's
REPEATING = b"nearest"  # mode in which `ENLARGE` repeats pixels
# What treats all pixels alike, if the constants that it takes do.
PER_CHANNEL = (
    QUANTIZE,
    DEQUANTIZE,
    CLIP,
    MAXIMUM,
    MINIMUM,
    *ACTIVATIONS,
    "Add",
    "Sub",
    "Mul",
    "Div",
)
LANES = 16  # output channels that kernels compute at once, needed or not


def enlarge_late(edited: EditedGraph) -> None:
    """Move what enlarges behind what treats all pixels alike, which then has fewer to treat.

    ::

        before:  Conv -> DepthToSpace -> QuantizeLinear -> ...
        after:   Conv -> QuantizeLinear -> DepthToSpace -> ...

    What repeats pixels stays before a quantization to signed integers: OpenVINO 2026.4 makes other
    values of these.
    """
    for node in edited.of_type(SHUFFLE, ENLARGE):
        if attribute(node, "mode") not in (PIXEL_SHUFFLE, REPEATING):
            continue
        copies = 1
        if node.op_type == SHUFFLE:
            copies = attribute(node, "blocksize") ** 2
        taker = edited.only_taker(node.output[0])
        while taker is not None and _is_per_channel(edited, taker, node.output[0]):
            if node.op_type == ENLARGE and _is_signed(edited, taker):
                break
            for place, name in enumerate(taker.input):
                if edited.is_constant(name):
                    taker.input[place] = _repeated(edited, name, copies)
            edited.swap(node, taker)
            taker = edited.only_taker(node.output[0])


def _is_signed(edited: EditedGraph, node: onnx.NodeProto) -> bool:
    """Whether a node quantizes to signed integers."""
    return node.op_type == QUANTIZE and edited.zeros_of(node).dtype == np.int8


def _is_per_channel(edited: EditedGraph, node: onnx.NodeProto, taken: str) -> bool:
    """Whether a node that takes an image of the name ``taken``, once, treats all pixels alike."""
    if node.op_type not in PER_CHANNEL or list(node.input).count(taken) > 1:
        return False
    for name in node.input:
        if not name or name == taken:
            continue
        if not edited.is_constant(name) or not is_of_channels(node, edited.constant(name)):
            return False
    return True


def _repeated(edited: EditedGraph, name: str, copies: int) -> str:
    """A constant for channels of which each has become several, one behind the other."""
    value = edited.constant(name)
    if value.size == 1 or copies == 1:
        return name
    channel_axis = int(np.argmax(value.shape))
    return edited.add_constant(value.repeat(copies, channel_axis))


def convolve_early(edited: EditedGraph) -> None:
    """Compute layers before the pixel shuffle that they follow, where that takes no more work.

    The last layer after a shuffle has few output channels. With a kernel for each pixel that a
    position becomes, the largest tensor of the network is never shuffled at all::

        before:  DepthToSpace -> Conv(C, O)
        after:   Conv(C r^2, O r^2) -> DepthToSpace
    """
    for shuffle in edited.of_type(SHUFFLE):
        conv = edited.only_taker(shuffle.output[0])
        if conv is None or not _slides_over_all(conv):
            continue
        constants = constants_of(edited, conv)
        if not constants or attribute(shuffle, "mode") != PIXEL_SHUFFLE:
            continue
        block = attribute(shuffle, "blocksize")
        weight, *others = constants
        late = edited.constant_of(*weight)
        early = unshuffled_kernel(late, block)
        if _work(early) > block**2 * _work(late):
            continue
        edited.give_constant(*weight, early)
        for node, place in others:
            node.input[place] = _repeated(edited, node.input[place], block**2)
        _set_size(conv, early.shape[-1])
        edited.swap(shuffle, conv)


def _slides_over_all(conv: onnx.NodeProto) -> bool:
    """Whether a node is a convolution of all channels with zeros around that keeps the size."""
    if conv.op_type != CONVOLVE or attribute(conv, "group", 1) != 1:
        return False
    size = attribute(conv, "kernel_shape")[0]
    if size % 2 == 0:
        return False
    wanted = {
        "kernel_shape": [size, size],
        "pads": [size // 2] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
    }
    return all(attribute(conv, name) == value for name, value in wanted.items())


def unshuffled_kernel(weight: np.ndarray, block: int) -> np.ndarray:
    """Weights of the convolution before a pixel shuffle that equals one behind it.

    Pixel ``y`` of the large image is pixel ``y // r`` of the small one, in channel ``y % r`` of its
    block.

    Args:
        weight: ``(O, C, K, K)``, K odd, of the convolution behind the shuffle.
        block: Factor of the shuffle, ``r``.

    Returns:
        ``(O r^2, C r^2, L, L)``, L odd.
    """
    outputs, inputs, size = weight.shape[:3]
    reach = size // 2
    padding = -(-reach // block)
    length = 2 * padding + 1
    shape = (outputs, block, block, inputs, block, block, length, length)
    kernel = np.zeros(shape, weight.dtype)
    for row, column, y, x in np.ndindex(block, block, size, size):
        small_y, row_in_block = divmod(row + y - reach, block)
        small_x, column_in_block = divmod(column + x - reach, block)
        of_pixel = kernel[:, row, column, :, row_in_block, column_in_block]
        of_pixel[:, :, padding + small_y, padding + small_x] = weight[:, :, y, x]
    return kernel.reshape(outputs * block**2, inputs * block**2, length, length)


def _set_size(conv: onnx.NodeProto, size: int) -> None:
    """Give a convolution the attributes of a kernel of another size."""
    for own in conv.attribute:
        if own.name == "kernel_shape":
            own.ints[:] = [size] * 2
        elif own.name == "pads":
            own.ints[:] = [size // 2] * 4


def _work(weight: np.ndarray) -> int:
    """Products at each position, with output channels rounded up to what kernels compute."""
    outputs = -(-len(weight) // LANES) * LANES
    return outputs * weight[0].size
