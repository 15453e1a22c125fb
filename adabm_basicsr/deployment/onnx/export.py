"""Writes a quantized network as an ONNX graph that runtimes execute as integers.

The graph takes one ``image``, ``(1, C, H, W)`` in 0..1, and gives the ``output`` and the ``level``:
which of the three image classes (0, 1, 2) the image's complexity chose, or full precision (3). So
it chooses its bits itself. Weights of up to four bits are stored as INT4, others as INT8.

Of networks that take clips, the graph of a windowed one takes a window as its ``image``,
``(1, T, C, H, W)``. That of a recurrent one makes a single frame, see `steps`.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from adabm_basicsr.deployment.freeze import freeze
from adabm_basicsr.deployment.onnx.description import describe
from adabm_basicsr.deployment.onnx.fusion import fuse
from adabm_basicsr.deployment.onnx.graph import use_operators
from adabm_basicsr.deployment.onnx.level import (
    FULL,
    LEVEL,
    LEVELS,
    MIDDLE,
    WHOLE,
    Part,
    at_level,
    choose_precision,
)
from adabm_basicsr.deployment.onnx.modules import write_plainly
from adabm_basicsr.deployment.onnx.seal import sealed
from adabm_basicsr.deployment.onnx.steps import STEP, BasicVSRStep, graph_part, has_steps
from adabm_basicsr.deployment.onnx.traceable import check_graph, check_sizes, check_values
from adabm_basicsr.errors import ExportError, first_line
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.recipes import INTEGER_RECIPES
from adabm_basicsr.quantization.structure.sizes import mirrored
from adabm_basicsr.quantization.user_code import short_place, users_code

OPSET = 21  # it brought INT4
TRACED_OPSET = 20  # torch's last one; none of the operators that are used here changed in the next
TRACED_SIZE = 64  # pixels
# What a graph of one step lacks for recurrent networks.
MISSING = {
    "IconVSR": "its step would take the features of key frames, which no graph here makes",
    "BasicVSRPlusPlus": "its step would take the states of two frames, which no graph here does",
}
NUMPY_WARNING = "Converting a tensor to a NumPy array"  # of the tracer
INT4_MIN = -8
INT4_MAX = 7


class _AtLevel(nn.Module):
    """A network with operators for quantizers, which take the level of an image.

    Args:
        frozen: See `freeze`; its quantizers are replaced.
        symmetric: See `save_onnx`.
    """

    def __init__(self, frozen: QuantizedNetwork, symmetric: bool) -> None:
        super().__init__()
        self.image_mapping = frozen.image_mapping
        self.full_precision_above = frozen.full_precision_above
        self.network = frozen.network
        self.inputs = use_operators(frozen, symmetric)
        write_plainly(frozen.network)

    def take_level(self, image: Tensor) -> Tensor:
        """The level of the image's class, ``()``, at which all quantizers are from now on."""
        level = torch.full((), MIDDLE, dtype=torch.int64)
        if self.image_mapping is not None:
            image_factor = self.image_mapping(image)[0]
            level = image_factor.to(torch.int64) + MIDDLE
        of_quantizers = level
        if self.full_precision_above is not None:
            is_full = image_complexity(image)[0] > self.full_precision_above
            level = torch.where(is_full, FULL, level)
            of_quantizers = level.clamp(max=LEVELS[-1])
        for quantizer in self.inputs:
            quantizer.level = of_quantizers
        return level


class _Deployed(_AtLevel):
    """What the graph computes: the image that the network makes, and the level of its class.

    Args:
        frozen: See `freeze`; its quantizers are replaced.
        symmetric: See `save_onnx`.
        pads: Whether the graph mirrors images up to sizes that the network takes.
        full: The network without quantizers, for images in full precision; None where there are
            none.
    """

    def __init__(
        self, frozen: QuantizedNetwork, symmetric: bool, pads: bool, full: nn.Module | None
    ) -> None:
        super().__init__(frozen, symmetric)
        self.full = full
        if full is not None:
            write_plainly(full)
        self.multiple = frozen.size_multiple
        self.pads = pads and self.multiple > 1

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        level = self.take_level(image)
        output = self._padded(self.network, image)
        if self.full is not None:
            output = choose_precision(level, self._padded(self.full, image), output)
        return output, level

    def _padded(self, network: nn.Module, image: Tensor) -> Tensor:
        """Output of a network, on an image that is mirrored up to a size that it takes."""
        if not self.pads:
            return network(image)
        height, width = image.shape[-2:]
        rows = mirrored(height, self.multiple)
        columns = mirrored(width, self.multiple)
        padded = image.index_select(-2, rows).index_select(-1, columns)
        output = network(padded)
        scale = int(output.shape[-2]) // int(padded.shape[-2])
        return output[..., : height * scale, : width * scale]


class _DeployedStep(_AtLevel):
    """What the graph of a step computes: a frame, the level of its class, and its states.

    Args:
        frozen: See `freeze`, a BasicVSR; its quantizers are replaced.
        symmetric: See `save_onnx`.
    """

    def __init__(self, frozen: QuantizedNetwork, symmetric: bool) -> None:
        super().__init__(frozen, symmetric)
        self.step = BasicVSRStep(frozen.network)

    def forward(self, image: Tensor, *neighbours: Tensor) -> tuple[Tensor, ...]:
        level = self.take_level(image)
        output, *states = self.step(image, *neighbours)
        return output, level, *states


class _OfOneTensor(nn.Module):
    """A step whose inputs are channels of one tensor, ``(1, C, H, W)``."""

    def __init__(self, deployed: _DeployedStep) -> None:
        super().__init__()
        self.deployed = deployed

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        made: tuple[Tensor, ...] = self.deployed(*inputs.split(self.deployed.step.channels, dim=1))
        return made


def save_onnx(
    net: QuantizedNetwork,
    path: str | os.PathLike,
    symmetric: bool = False,
    level: int | None = None,
    form: str | None = None,
) -> None:
    """Write a calibrated network as an ONNX file, atomically and only once it is checked.

    Args:
        net: The network, of any recipe with integer quantizers.
        path: The file to write.
        symmetric: Whether inputs are quantized without zero points, for engines that want it so
            (TensorRT): 8-bit layers lose up to a bit, others nothing.
        level: Write a graph for this image class (0, 1, 2) alone, without the choice and without
            INT4: all scales are constants then, which some engines want.
        form: What `OnnxNetwork` makes of the graph for OpenVINO, a key of `fusion.FORMS`; None for
            its own choice.

    Raises:
        AdaBMError: The network isn't calibrated, its recipe has no integers, its operations can't
            be expressed, or the file can't be written.
    """
    if net.clips is not None and net.clips.window is not None and level is None:
        _check_fixed_bits(net)
    model = to_onnx(net, symmetric)
    if level is not None:
        model = fuse(at_level(model, level, graph_part(net.clips)))
    describe(model, net, symmetric, level, form)
    write_checked(model, path)


def _check_fixed_bits(net: QuantizedNetwork) -> None:
    """Reject a network of windows whose bits follow the frames in them."""
    if net.image_mapping is not None:
        raise ExportError(
            f"{type(net.network).__name__} sees frames of several classes side by side, for which "
            "there are no operators of integers; quantize with recipe static, or write the graph "
            "of one class (--level 1); a packed file holds it as it is"
        )


def write_checked(model: onnx.ModelProto, path: str | os.PathLike) -> None:
    """Write a described graph, atomically and only if it is as ONNX wants it.

    Raises:
        ExportError: It isn't.
    """
    _check(model)
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(sealed(model.SerializeToString()))


def to_onnx(
    net: QuantizedNetwork,
    symmetric: bool = False,
    pads: bool = True,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """The adaptive graph of a calibrated network.

    Args:
        net: See `save_onnx`.
        symmetric: See `save_onnx`.
        pads: Whether the graph mirrors images up to sizes that the network takes.
        opset: Version of ONNX. From 21 on, weights of up to four bits are stored as INT4.

    Raises:
        AdaBMError: As `save_onnx`.
    """
    if not net.config.arithmetic.integer:
        raise ExportError(
            f"recipe {net.config.recipe!r} quantizes as published, without an integer zero point: "
            f"no runtime has such operators; quantize with one of the recipes {INTEGER_RECIPES}"
        )
    traced_opset = min(opset, TRACED_OPSET)
    if graph_part(net.clips) is STEP:
        model = _graph_of_step(net, symmetric, traced_opset)
    else:
        model = _graph(net, symmetric, pads, traced_opset)
    if opset >= OPSET:
        _set_opset(model, opset)
        _store_as_int4(model)
    _check(model)
    return model


def _graph(net: QuantizedNetwork, symmetric: bool, pads: bool, opset: int) -> onnx.ModelProto:
    """The traced graph of a network that takes images or windows."""
    full = None
    if net.full_precision_above is not None:
        full = net.float_network().cpu()
    deployed = _Deployed(freeze(net).cpu(), symmetric, pads, full).eval()
    size = _example_size(deployed.multiple, deployed.pads)
    window = () if net.clips is None else (net.clips.frames,)
    shape = (1, *window, net.in_channels, size, size)
    name = type(net.network).__name__
    with users_code(deployed.network, "the network can't be written as ONNX"):
        check_values(deployed, shape, name)
        model = _trace(deployed, [torch.rand(shape)], WHOLE, opset)
        multiple = 1 if pads else deployed.multiple
        check_sizes(deployed, shape, name, multiple)
        if net.clips is None:
            # ONNX's own program takes minutes for a window.
            check_graph(model, deployed, shape, multiple)
    return model


def _graph_of_step(net: QuantizedNetwork, symmetric: bool, opset: int) -> onnx.ModelProto:
    """The traced graph of one step of a recurrent network.

    It isn't run as ONNX defines it: the definition's own program takes minutes to warp a frame.
    """
    name = type(net.network).__name__
    if not has_steps(net.network):
        missing = MISSING.get(name, "graphs of one step are known of BasicVSR alone")
        raise ExportError(f"{name} can't be written as ONNX: {missing}; a packed file holds it")
    deployed = _DeployedStep(freeze(net).cpu(), symmetric).eval()
    channels = deployed.step.channels
    shape = (1, sum(channels), TRACED_SIZE, TRACED_SIZE)
    with users_code(deployed.network, "the network can't be written as ONNX"):
        of_one_tensor = _OfOneTensor(deployed)
        check_values(of_one_tensor, shape, name)
        model = _trace(deployed, torch.rand(shape).split(channels, dim=1), STEP, opset)
        check_sizes(of_one_tensor, shape, name)
    return model


def _example_size(multiple: int, pads: bool) -> int:
    """Height and width of an image that is padded, if any is."""
    size = -(-TRACED_SIZE // multiple) * multiple
    return size + 1 if pads else size


def _trace(
    deployed: _AtLevel, examples: Sequence[Tensor], part: Part, opset: int
) -> onnx.ModelProto:
    """The graph of ``deployed``, whose second output is the level.

    Args:
        deployed: What is traced.
        examples: Inputs of it.
        part: Names of its inputs, and of its outputs but for the level.
        opset: Version of ONNX.
    """
    buffer = io.BytesIO()
    output, *states = part.outputs
    sizes = {output: {2: "out_height", 3: "out_width"}}
    for name in states:
        sizes[name] = {2: "height", 3: "width"}
    for name, example in zip(part.inputs, examples, strict=True):
        sizes[name] = {example.dim() - 2: "height", example.dim() - 1: "width"}
    try:
        with torch.no_grad(), _no_printing(), warnings.catch_warnings(record=True) as caught:
            # The tracer warns of shapes that it keeps as constants where they are.
            warnings.simplefilter("always")
            torch.onnx.export(
                deployed,
                tuple(examples),
                buffer,  # type: ignore[arg-type]  # takes one, though its annotation says no
                dynamo=False,
                opset_version=opset,
                input_names=list(part.inputs),
                output_names=[output, LEVEL, *states],
                dynamic_axes=sizes,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"the network can't be written as ONNX: {first_line(error)}") from error
    _check_warnings(caught)
    return onnx.load_from_string(buffer.getvalue())


@contextmanager
def _no_printing() -> Iterator[None]:
    """Within this context torch's exporter prints no graphs, as torch 2.13 does where it fails."""
    printing = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = _print_nothing
    try:
        yield
    finally:
        torch._C._jit_onnx_log = printing


def _print_nothing(*_: object) -> None:
    """Instead of what prints graphs."""


def _check_warnings(caught: Sequence[warnings.WarningMessage]) -> None:
    """Reject what NumPy makes of an image; the tracer only warns of it."""
    for warning in caught:
        if str(warning.message).startswith(NUMPY_WARNING):
            place = short_place(warning.filename, warning.lineno)
            raise ExportError(
                "the network can't be written as ONNX: NumPy computes a part of it, and a graph "
                f"would keep what it made of one image ({place}); use tensor operations"
            )


def _set_opset(model: onnx.ModelProto, version: int) -> None:
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = version


def _store_as_int4(model: onnx.ModelProto) -> None:
    """Store weights whose integers fit into four bits in four bits."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.INT8 or values.ndim == 0:
            continue
        if values.min() >= INT4_MIN and values.max() <= INT4_MAX:
            narrow = helper.make_tensor(
                tensor.name, TensorProto.INT4, values.shape, values.flatten()
            )
            tensor.CopyFrom(narrow)


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the network can't be written as ONNX: {first_line(error)}") from error
