"""How ONNX operators are written as ncnn layers: one table, `CONVERTERS`.

A converter takes the graph and a node and gives the layers that compute it. Convolutions are the
matter of `convolutions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx

from adabm_basicsr.deployment.ncnn.layers import Layer, Parameter, floats
from adabm_basicsr.deployment.onnx.editing import EditedGraph, attribute
from adabm_basicsr.errors import ExportError
from adabm_basicsr.quantization.checks import IMAGE_AXES

Converter = Callable[[EditedGraph, onnx.NodeProto], list[Layer]]

# Powers as operations of one value; others are computed by logarithms, which negative values lack.
POWERS = {2.0: 4, 0.5: 5, -1.0: 15}
TO_THE_END = -233  # instead of where a part ends
LARGEST = 2**31 - 1  # number that ncnn reads
CHANNELS = 1  # their axis in ONNX; in ncnn, which has no batch, all axes are one lower

# Numbers of ncnn's own enumerations.
BINARY = {"Add": 0, "Sub": 1, "Mul": 2, "Div": 3, "Max": 4, "Min": 5}
REVERSED = {"Add": 0, "Sub": 7, "Mul": 2, "Div": 8, "Max": 4, "Min": 5}
UNARY = {"Abs": 0, "Neg": 1, "Floor": 2, "Ceil": 3, "Sqrt": 5, "Exp": 7, "Log": 8, "Reciprocal": 15}
REDUCTIONS = {"ReduceSum": 0, "ReduceMean": 3, "ReduceMax": 4, "ReduceMin": 5}
POOLINGS = {"MaxPool": 0, "AveragePool": 1}
PADDINGS = {b"constant": 0, b"edge": 1, b"reflect": 2}
INTERPOLATIONS = {
    (b"nearest", b"asymmetric"): 1,
    (b"linear", b"half_pixel"): 2,
    (b"linear", b"pytorch_half_pixel"): 2,
}


def refuse(node: onnx.NodeProto, why: str) -> ExportError:
    """The error for a node that can't be written."""
    return ExportError(
        f"ncnn: {node.name or node.op_type}: {why}; export for another engine, or leave the layer "
        "out of the network"
    )


def _layer(
    kind: str,
    node: onnx.NodeProto,
    parameters: Mapping[int, Parameter] | None = None,
    weights: Sequence[bytes] = (),
) -> Layer:
    """The layer of a node that takes one image, beside constants, and makes one."""
    return Layer(kind, [node.input[0]], [node.output[0]], parameters or {}, list(weights))


def _same(kind: str, **numbers: float) -> Converter:
    """An operator that ncnn has as it is, with fixed parameters ``p0``, ``p1``, ..."""

    def convert(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
        parameters = {int(name[1:]): value for name, value in numbers.items()}
        return [_layer(kind, node, dict(parameters))]

    return convert


def _with_attributes(kind: str, **names: float) -> Converter:
    """An operator whose attributes, in this order, are ncnn's parameters; with their defaults."""

    def convert(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
        parameters: dict[int, Parameter] = {}
        for key, (name, default) in enumerate(names.items()):
            parameters[key] = float(attribute(node, name, default))
        return [_layer(kind, node, parameters)]

    return convert


def _unary(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    return [_layer("UnaryOp", node, {0: UNARY[node.op_type]})]


def _binary(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    """An operation on two images, or on one and a constant for all or each of its channels."""
    first, second = node.input
    operation = BINARY[node.op_type]
    if edited.is_constant(first):
        first, second = second, first
        operation = REVERSED[node.op_type]
    if not edited.is_constant(second):
        return [Layer("BinaryOp", [first, second], list(node.output), {0: operation})]
    value = edited.constant(second)
    if value.size == 1:
        parameters: dict[int, Parameter] = {0: operation, 1: 1, 2: float(value.item())}
        return [Layer("BinaryOp", [first], list(node.output), parameters)]
    if value.size != max(value.shape[-3:-2], default=0):
        raise refuse(node, f"it takes a constant of shape {value.shape}, not one per channel")
    constant = f"{node.output[0]}_constant"
    memory = Layer("MemoryData", [], [constant], {0: 1, 1: 1, 2: value.size}, [floats(value)])
    layer = Layer("BinaryOp", [first, constant], list(node.output), {0: operation})
    return [memory, layer]


def _power(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    exponent = None
    if edited.is_constant(node.input[1]) and edited.constant_of(node, 1).size == 1:
        exponent = float(edited.constant_of(node, 1).item())
    if exponent not in POWERS:
        raise refuse(node, "it is another power than the square, the root or the reciprocal")
    return [_layer("UnaryOp", node, {0: POWERS[exponent]})]


def _prelu(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    slopes = edited.constant_of(node, 1)
    layer = _layer("PReLU", node, {0: slopes.size}, [floats(slopes)])
    return [layer]


def _batch_norm(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    slope, bias, mean, variance = (edited.constant(name) for name in node.input[1:])
    parameters: dict[int, Parameter] = {0: slope.size, 1: float(attribute(node, "epsilon", 1e-5))}
    weights = [floats(values) for values in (slope, mean, variance, bias)]
    return [_layer("BatchNorm", node, parameters, weights)]


def _instance_norm(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    slope, bias = (edited.constant(name) for name in node.input[1:])
    epsilon = float(attribute(node, "epsilon", 1e-5))
    parameters: dict[int, Parameter] = {0: slope.size, 1: epsilon, 2: 1}
    weights = [floats(slope), floats(bias)]
    return [_layer("InstanceNorm", node, parameters, weights)]


def _clip(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    parameters = {}
    for key, name in enumerate(node.input[1:]):
        if name:
            parameters[key] = float(edited.constant(name))
    return [_layer("Clip", node, parameters)]


def _gelu(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    is_fast = attribute(node, "approximate", b"none") == b"tanh"
    return [_layer("GELU", node, {0: int(is_fast)})]


def _pixel_shuffle(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    if attribute(node, "mode", b"DCR") != b"CRD":
        raise refuse(node, "its channels are in another order than torch's pixel shuffle has")
    parameters = {0: attribute(node, "blocksize")}
    return [_layer("PixelShuffle", node, parameters)]


def _resize(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    form = (attribute(node, "mode"), attribute(node, "coordinate_transformation_mode"))
    if form not in INTERPOLATIONS:
        raise refuse(node, f"it interpolates as {form[0].decode()}, {form[1].decode()}")
    scales = node.input[2] if len(node.input) > 2 else ""
    if not edited.is_constant(scales):
        raise refuse(node, "it enlarges to a size rather than by a factor")
    *_, height, width = (float(scale) for scale in edited.constant(scales))
    parameters = {0: INTERPOLATIONS[form], 1: height, 2: width}
    return [_layer("Interp", node, parameters)]


def _concat(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    axis = _axis(node, attribute(node, "axis"))
    return [Layer("Concat", list(node.input), list(node.output), {0: axis})]


def _split(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    axis = _axis(node, attribute(node, "axis", 0))
    if len(node.input) < 2 or not edited.is_constant(node.input[1]):
        raise refuse(node, "it splits into parts whose sizes aren't constants")
    sizes = [int(size) for size in edited.constant_of(node, 1)]
    return [Layer("Slice", [node.input[0]], list(node.output), {0: sizes, 1: axis})]


def _slice(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    if not all(edited.is_constant(name) for name in node.input[1:]):
        raise refuse(node, "it takes a part whose place isn't constant")
    values = [[int(number) for number in edited.constant(name)] for name in node.input[1:]]
    starts, ends, axes, *steps = values
    if any(step != 1 for of_axes in steps for step in of_axes) or axes != [CHANNELS]:
        raise refuse(node, "it takes another part than some channels in a row")
    ends = [end if end < LARGEST else TO_THE_END for end in ends]
    parameters = {9: starts, 10: ends, 11: [0]}
    return [_layer("Crop", node, parameters)]


def _reduce(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        axes = [int(axis) for axis in edited.constant_of(node, 1)]
    wanted = [_axis(node, axis) for axis in axes or []]
    if sorted(wanted) not in ([1, 2], [0]) or not attribute(node, "keepdims", 1):
        raise refuse(node, "it reduces other axes than rows and columns, or channels")
    return [_reduction(node, REDUCTIONS[node.op_type], wanted)]


def _global_pool(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    operation = "ReduceMax" if node.op_type == "GlobalMaxPool" else "ReduceMean"
    return [_reduction(node, REDUCTIONS[operation], [1, 2])]


def _reduction(node: onnx.NodeProto, operation: int, axes: Sequence[int]) -> Layer:
    # 5: axes are counted as they are here; older versions count them otherwise without it.
    parameters: dict[int, Parameter] = {0: operation, 1: 0, 3: list(axes), 4: 1, 5: 1}
    return _layer("Reduction", node, parameters)


def _pool(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    top, left, bottom, right = attribute(node, "pads", [0] * 4)
    kernel = attribute(node, "kernel_shape")
    strides = attribute(node, "strides", [1, 1])
    if attribute(node, "ceil_mode", 0) or set(attribute(node, "dilations", [1, 1])) != {1}:
        raise refuse(node, "it has a dilation, or counts parts of windows")
    parameters: dict[int, Parameter] = {
        0: POOLINGS[node.op_type],
        1: kernel[1],
        11: kernel[0],
        2: strides[1],
        12: strides[0],
        3: left,
        13: top,
        14: right,
        15: bottom,
        5: 1,  # windows that go beyond the image aren't taken
        6: attribute(node, "count_include_pad", 0),
    }
    return [_layer("Pooling", node, parameters)]


def _pad(edited: EditedGraph, node: onnx.NodeProto) -> list[Layer]:
    pads = [int(number) for number in edited.constant_of(node, 1)]
    mode = attribute(node, "mode", b"constant")
    if len(pads) != 2 * IMAGE_AXES or any(pads[:2] + pads[4:6]) or mode not in PADDINGS:
        raise refuse(node, "it pads other axes than rows and columns, or in another way")
    value = 0.0
    if len(node.input) > 2 and node.input[2]:
        value = float(edited.constant_of(node, 2))
    parameters = {0: pads[2], 1: pads[6], 2: pads[3], 3: pads[7], 4: PADDINGS[mode], 5: value}
    return [_layer("Padding", node, parameters)]


def _axis(node: onnx.NodeProto, axis: int) -> int:
    """An axis of an image as ncnn counts it, which knows no batch."""
    axis = axis + IMAGE_AXES if axis < 0 else axis
    if axis == 0:
        raise refuse(node, "it works along the batch")
    return axis - 1


CONVERTERS: dict[str, Converter] = {
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "DepthToSpace": _pixel_shuffle,
    "Elu": _with_attributes("ELU", alpha=1.0),
    "Gelu": _gelu,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "HardSigmoid": _with_attributes("HardSigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _same("HardSwish", p0=1 / 6, p1=0.5),
    "InstanceNormalization": _instance_norm,
    "LeakyRelu": _with_attributes("ReLU", alpha=0.01),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _power,
    "Relu": _same("ReLU"),
    "Resize": _resize,
    "Sigmoid": _same("Sigmoid"),
    "Slice": _slice,
    "Split": _split,
    "Tanh": _same("TanH"),
}
CONVERTERS |= dict.fromkeys(BINARY, _binary)
CONVERTERS |= dict.fromkeys(UNARY, _unary)
CONVERTERS |= dict.fromkeys(REDUCTIONS, _reduce)
CONVERTERS |= dict.fromkeys(POOLINGS, _pool)
