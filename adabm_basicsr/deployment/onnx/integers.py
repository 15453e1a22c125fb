"""Brings graphs whose values are integers from layer to layer into the form that engines fuse.

Engines such as ONNX Runtime take ``DequantizeLinear -> layer or sum -> QuantizeLinear`` for one
operation on integers. The graph of a network that was quantized for them (`quantization.engines`)
has these around all that it makes; here goes what stands between them for nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.editing import (
    DEQUANTIZE,
    QUANTIZE,
    ZERO,
    EditedGraph,
    attribute,
)
from adabm_basicsr.deployment.onnx.matching import BIAS, CONVOLVE, WEIGHT, constants_of
from adabm_basicsr.deployment.onnx.shuffles import ENLARGE, REPEATING, SHUFFLE

INT32 = np.iinfo(np.int32)
# What moves values, repeats them or takes them apart, and doesn't compute any.
VIEWS = ("Split", "Slice", SHUFFLE, ENLARGE)


def drop_ones(edited: EditedGraph) -> None:
    """Take out multiplications by one."""
    for product in edited.of_type("Mul", "Div"):
        if edited.is_constant(product.input[1]) and np.all(edited.constant_of(product, 1) == 1):
            edited.bypass(product)


def scale_integers(edited: EditedGraph) -> None:
    """Multiply integers by a number where they become floats.

    ::

        before:  DequantizeLinear(scale) -> Mul(factor)
        after:   DequantizeLinear(scale * factor)
    """
    for product in edited.of_type("Mul", "Div"):
        dequantize = edited.maker(product.input[0])
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            continue
        factor = _positive_number(edited, product)
        if factor is None or edited.is_constant(dequantize.input[0]):
            continue
        integers, _, zero = dequantize.input
        name = edited.add_constant(edited.scales_of(dequantize) * factor)
        edited.add_node(DEQUANTIZE, [integers, name, zero], f"{product.output[0]}_scaled")
        edited.replace_value(product.output[0], f"{product.output[0]}_scaled")
        edited.graph.node.remove(product)


def scale_layers(edited: EditedGraph) -> None:
    """Multiply what a convolution makes by a number within the convolution.

    ::

        before:  Conv(w, b) -> Mul(factor)
        after:   Conv(w * factor, b * factor)

    Integers of a weight stay as they are, their scales change.
    """
    for product in edited.of_type("Mul", "Div"):
        conv = edited.maker(product.input[0])
        if conv is None or conv.op_type != CONVOLVE or edited.only_taker(conv.output[0]) is None:
            continue
        factor = _positive_number(edited, product)
        if factor is None:
            continue
        for slot in constants_of(edited, conv):
            value = edited.constant_of(*slot)
            if value.dtype == np.float32:
                edited.give_constant(*slot, value * factor)
        edited.bypass(product)


def _positive_number(edited: EditedGraph, product: onnx.NodeProto) -> np.float32 | None:
    """What a product or quotient multiplies by, if that is a constant number above 0."""
    name = product.input[1]
    if not edited.is_constant(name) or edited.constant(name).size > 1:
        return None
    number = np.float32(edited.constant(name).item())
    if number <= 0:
        return None
    return 1 / number if product.op_type == "Div" else number


def quantize_once(edited: EditedGraph) -> None:
    """Take out quantizations of what has the same integers already.

    ::

        before:  Quantize(s) -> Dequantize(s) -> Quantize(s) -> Dequantize(s)
        after:   Quantize(s) -> Dequantize(s)
    """
    for quantize in edited.of_type(QUANTIZE):
        dequantize = edited.maker(quantize.input[0])
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            continue
        if _grid(edited, dequantize) == _grid(edited, quantize):
            edited.replace_value(quantize.output[0], dequantize.input[0])
            edited.graph.node.remove(quantize)


def merge_equal(edited: EditedGraph) -> None:
    """Quantize a value once for all that take it, and make floats of its integers once."""
    for kind in (QUANTIZE, DEQUANTIZE):
        first: dict[tuple, onnx.NodeProto] = {}
        for node in edited.of_type(kind):
            if edited.is_constant(node.input[0]):
                continue
            same = first.setdefault((node.input[0], _grid(edited, node)), node)
            if same is not node:
                edited.replace_value(node.output[0], same.output[0])
                edited.graph.node.remove(node)


def quantize_before_views(edited: EditedGraph) -> None:
    """Round before values are moved or taken apart, where all that takes them rounds alike.

    The layer before then gives integers. Those behind stay, and change nothing::

        before:  x -> Split -> QuantizeLinear(s), QuantizeLinear(s)
        after:   x -> QuantizeLinear(s) -> DequantizeLinear(s) -> Split -> ...
    """
    for view in edited.of_type(*VIEWS):
        if view.op_type == ENLARGE and attribute(view, "mode") != REPEATING:
            continue
        takers = edited.takers(view)
        if not takers or any(taker.op_type != QUANTIZE for taker in takers):
            continue
        if len({_grid(edited, taker) for taker in takers}) > 1:
            continue
        grid = list(takers[0].input[1:])
        integers = f"{view.name}_integers"
        edited.insert(QUANTIZE, grid, view, integers)
        edited.insert(DEQUANTIZE, grid, view, f"{view.name}_rounded")


def drop_repeated(edited: EditedGraph) -> None:
    """Take out quantizations of what holds grid points, which was moved or concatenated since.

    OpenVINO moves the integers themselves then, and would round them once more otherwise::

        before:  DequantizeLinear(s) -> Split -> QuantizeLinear(s) -> DequantizeLinear(s)
        after:   DequantizeLinear(s) -> Split
    """
    for quantize in edited.of_type(QUANTIZE):
        sources = _dequantizations(edited, quantize.input[0])
        grids = {_grid(edited, source) for source in sources}
        if grids != {_grid(edited, quantize)}:
            continue
        for dequantize in edited.takers(quantize):
            edited.replace_value(dequantize.output[0], quantize.input[0])
            edited.graph.node.remove(dequantize)
        edited.graph.node.remove(quantize)


def _dequantizations(edited: EditedGraph, name: str) -> list[onnx.NodeProto]:
    """What makes floats of the integers that a value holds, moved, taken apart or concatenated.

    None where a part of the value has other floats.
    """
    maker = edited.maker(name)
    if maker is None:
        return []
    if maker.op_type == DEQUANTIZE:
        return [maker]
    if maker.op_type not in (*VIEWS, "Concat"):
        return []
    moved = maker.input if maker.op_type == "Concat" else maker.input[:1]
    found: list[onnx.NodeProto] = []
    for part in moved:
        sources = _dequantizations(edited, part)
        if not sources:
            return []
        found += sources
    return found


def drop_unused(edited: EditedGraph) -> None:
    """Take out what nothing takes, such as floats of integers that other floats have replaced."""
    outputs = {output.name for output in edited.graph.output}
    while True:
        unused = []
        for node in edited.graph.node:
            if not any(edited.is_taken(name) or name in outputs for name in node.output):
                unused.append(node)
        if not unused:
            return
        for node in unused:
            edited.graph.node.remove(node)


def round_again(edited: EditedGraph) -> None:
    """Round once more what was moved since it was rounded, so that its takers find integers.

    The values are on grid points already, so that none changes::

        before:  DequantizeLinear(s, z) -> DepthToSpace -> Conv
        after:   DequantizeLinear(s, z) -> DepthToSpace -> QuantizeLinear(s, z)
                     -> DequantizeLinear(s, z) -> Conv
    """
    for node in edited.of_type(SHUFFLE, ENLARGE):
        dequantize = edited.maker(node.input[0])
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            continue
        grid = list(dequantize.input[1:])
        if not all(edited.is_constant(name) and edited.constant(name).ndim == 0 for name in grid):
            continue
        result = node.output[0]
        moved = f"{result}_moved"
        integers = f"{result}_integers"
        node.output[0] = moved
        edited.add_node(QUANTIZE, [moved, *grid], integers)
        edited.add_node(DEQUANTIZE, [integers, *grid], result)


def store_whole_biases(edited: EditedGraph) -> None:
    """Store biases of convolutions of integers as integers of 32 bits, in units of their sums.

    ONNX Runtime of before 2024 runs no others as integers. Those that it runs in float anyway keep
    the float bias that was simulated: half a unit may bring a value to another grid point. A bias
    of zeros becomes one unit: with none, OpenVINO 2026.4 takes a wrong sum, see `fill_biases`.
    """
    for conv in edited.of_type(CONVOLVE):
        grid = _grid_of_sums(edited, conv)
        if grid is None:
            continue
        bias = edited.constant_of(conv, BIAS).astype(np.float64)
        whole = np.round(bias / grid)
        if np.abs(whole).max() > INT32.max:
            continue
        if not whole.any():
            whole += 1
        integers = edited.add_constant(whole.astype(np.int32))
        scales = edited.add_constant(grid)
        dequantized = f"{conv.output[0]}_bias"
        edited.add_node(DEQUANTIZE, [integers, scales], dequantized, axis=0)
        conv.input[BIAS] = dequantized


def _grid_of_sums(edited: EditedGraph, conv: onnx.NodeProto) -> np.ndarray | None:
    """Scales of what a convolution of integers adds up, ``(O,)``.

    None of one that takes or makes no integers, has a bias that isn't constant, or has channels
    whose weights are all zero, without a scale.
    """
    if not _takes_integers(edited, conv) or not _makes_integers(edited, conv):
        return None
    if len(conv.input) <= BIAS or not edited.is_constant(conv.input[BIAS]):
        return None
    of_input = edited.maker(conv.input[0])
    of_weight = edited.maker(conv.input[WEIGHT])
    assert of_input is not None
    assert of_weight is not None
    scale = edited.scales_of(of_input)
    if scale.ndim > 0:
        return None
    grid = scale * edited.scales_of(of_weight)
    return grid if (grid > 0).all() else None


def _grid(edited: EditedGraph, node: onnx.NodeProto) -> tuple[bytes, bytes]:
    """Scale and zero point of a node, such that equal ones compare equal."""
    scale = np.float32(edited.scales_of(node)).tobytes()
    zero = edited.constant_of(node, ZERO)
    return scale, f"{zero.dtype} {zero.tolist()}".encode()


# How convolutions run


class Convolutions(NamedTuple):
    """How the convolutions of a graph run, by their names.

    Attributes:
        integers: Input, weight and output are quantized: as integers in every program.
        float_outputs: Only the output isn't: as integers in OpenVINO, in float in ONNX Runtime.
        floats: Input or weight aren't quantized.
    """

    integers: list[str]
    float_outputs: list[str]
    floats: list[str]


def convolutions(edited: EditedGraph, moves_integers: bool = False) -> Convolutions:
    """How the convolutions of a graph of one image class run.

    Args:
        edited: The graph.
        moves_integers: Whether the engine splits, moves and concatenates integers by itself, so
            that they needn't be rounded again right before a convolution.
    """
    found = Convolutions([], [], [])
    for conv in edited.of_type(CONVOLVE, "ConvTranspose"):
        takes_integers = _takes_integers(edited, conv)
        if moves_integers and not takes_integers:
            takes_integers = all(_dequantizations(edited, name) for name in conv.input[:BIAS])
        if conv.op_type != CONVOLVE or not takes_integers:
            found.floats.append(conv.name)
        elif _makes_integers(edited, conv):
            found.integers.append(conv.name)
        else:
            found.float_outputs.append(conv.name)
    return found


def _takes_integers(edited: EditedGraph, conv: onnx.NodeProto) -> bool:
    """Whether input and weight of a convolution are dequantized right before it."""
    makers = [edited.maker(name) for name in (conv.input[0], conv.input[WEIGHT])]
    return all(maker is not None and maker.op_type == DEQUANTIZE for maker in makers)


def _makes_integers(edited: EditedGraph, conv: onnx.NodeProto) -> bool:
    """Whether nothing but a quantization takes a convolution's output, or a ReLU before one."""
    taker = edited.only_taker(conv.output[0])
    if taker is not None and taker.op_type == "Relu":
        taker = edited.only_taker(taker.output[0])
    return taker is not None and taker.op_type == QUANTIZE
