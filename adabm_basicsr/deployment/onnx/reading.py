"""Reads ONNX files: those of `save_onnx` with their description, and what layers any file holds."""

from __future__ import annotations

import json
import math
import os
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from adabm_basicsr.deployment.onnx.description import FORMAT
from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE
from adabm_basicsr.deployment.onnx.level import IMAGE, LEVEL, LEVELS, MIDDLE
from adabm_basicsr.deployment.onnx.seal import is_whole
from adabm_basicsr.deployment.onnx.steps import STEP, graph_part
from adabm_basicsr.errors import CheckpointError, first_line, not_found
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY
from adabm_basicsr.quantization.checks import CLIP_AXES, IMAGE_AXES
from adabm_basicsr.quantization.structure.blueprint import read_clips
from adabm_basicsr.quantization.structure.clips import Clips
from adabm_basicsr.quantization.structure.sizes import trial_size
from adabm_basicsr.terminal import printable

MAX_MULTIPLE = 4096  # pixels that the sides of images are multiples of
MAX_VALUES = 2**28  # of a tensor, on an image of some twenty pixels: a gigabyte
LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


class OnnxFile(NamedTuple):
    """An ONNX file that was read.

    Attributes:
        model: The graph.
        description: How its network was built and quantized, None in files of others.
        is_whole: Whether the file is as `save_onnx` wrote it.
    """

    model: onnx.ModelProto
    description: dict[str, Any] | None
    is_whole: bool


class OwnFile(NamedTuple):
    """An ONNX file that this package wrote, as it was written.

    Attributes:
        model: The graph.
        description: How its network was built and quantized.
        level: The image class that it is for alone; None where the graph chooses one of three.
        clips: Clips that the network takes; None of one that takes images.
    """

    model: onnx.ModelProto
    description: dict[str, Any]
    level: int | None
    clips: Clips | None


class OnnxLayer(NamedTuple):
    """A layer with a stored weight.

    Attributes:
        name: Of its node.
        operator: ``Conv``, ``ConvTranspose``, ``MatMul`` or ``Gemm``.
        shape: Of the weight.
        type: Of the weight as it is stored: ``int4``, ``int8``, ``float``, ...
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    type: str


def read_file(path: str | os.PathLike) -> OnnxFile:
    """Read any ONNX file, ours or not.

    Raises:
        CheckpointError: The file is missing or corrupt.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - a name may be too long for a path
        raise not_found("ONNX file", path, CheckpointError)
    try:
        content = Path(path).read_bytes()
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        description = json.loads(metadata.get(DESCRIPTION_KEY, "null"))
    except Exception as error:  # of protobuf, the checker or json: it depends on the damage
        raise CheckpointError(
            f"ONNX file {path} cannot be read (truncated or corrupt): "
            f"{printable(first_line(error))}"
        ) from error
    if not isinstance(description, dict):
        description = None
    return OnnxFile(model, description, is_whole(content))


def read_own(path: str | os.PathLike) -> OwnFile:
    """Read an ONNX file that this package wrote.

    Raises:
        CheckpointError: The file is missing, corrupt, changed, not ours or of another version.
    """
    model, description, whole = read_file(path)
    if description is None:
        raise CheckpointError(
            f"{path} was not written by adabm-basicsr: its description is missing"
        )
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"ONNX file {path} has format {reprlib.repr(description.get('format'))}; this version "
            f"reads {FORMAT}"
        )
    if not whole:
        raise CheckpointError(
            f"ONNX file {path} is damaged, or was changed after the export: its checksum is wrong"
        )
    _check_multiple(path, description.get("size_multiple"))
    try:
        # Files of before 2026-11-28 don't say it.
        clips = read_clips(description.get("clips"))
    except CheckpointError as error:
        raise damaged(path, str(error)) from error
    _check_inputs(path, model.graph, clips)
    _check_graph(path, model, description["size_multiple"], clips)
    return OwnFile(model, description, _only_level(path, model, description), clips)


def _only_level(
    path: str | os.PathLike, model: onnx.ModelProto, description: dict[str, Any]
) -> int | None:
    """The image class that a graph is for alone; None where it chooses one."""
    if LEVEL in [output.name for output in model.graph.output]:
        return None
    # Files of before 2026-11-28 don't say it.
    level = description.get("level", MIDDLE)
    if type(level) is not int or level not in LEVELS:
        raise damaged(path, f"its level is {reprlib.repr(level)}; valid: 0, 1 or 2")
    return level


def _check_multiple(path: str | os.PathLike, multiple: object) -> None:
    if type(multiple) is not int or not 1 <= multiple <= MAX_MULTIPLE:
        raise damaged(
            path, f"its size_multiple is {reprlib.repr(multiple)}; valid: 1 to {MAX_MULTIPLE}"
        )


def _check_inputs(path: str | os.PathLike, graph: onnx.GraphProto, clips: Clips | None) -> None:
    """Reject a graph that takes something else than images, windows or what a step takes."""
    names = [value.name for value in graph.input]
    sizes = [value.type.tensor_type.shape.dim for value in graph.input]
    if graph_part(clips) is STEP:
        has_inputs = names == list(STEP.inputs)
        has_axes = all(len(size) == IMAGE_AXES and size[-3].dim_value > 0 for size in sizes)
        if not has_inputs or not has_axes:
            raise damaged(path, f"its graph doesn't take {', '.join(STEP.inputs)}")
        return
    axes = IMAGE_AXES if clips is None else CLIP_AXES
    is_image = names == [IMAGE] and len(sizes[0]) == axes
    if not is_image or sizes[0][-3].dim_value < 1:
        raise damaged(path, f"its graph doesn't take one input {IMAGE!r} of {axes} axes")
    if clips is not None and sizes[0][1].dim_value != clips.frames:
        raise damaged(path, f"its graph doesn't take windows of {clips.frames} frames")


def _check_graph(
    path: str | os.PathLike, model: onnx.ModelProto, multiple: int, clips: Clips | None
) -> None:
    """Reject a graph whose values don't fit together, or that keeps some of them elsewhere."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise damaged(path, f"it keeps {tensor.name!r} in another file")
    made = [output.name for output in model.graph.output]
    for name in graph_part(clips).outputs:
        if name not in made:
            raise damaged(path, f"its graph doesn't make {name!r}")
    try:
        check_shapes(model, multiple)
    except Exception as error:  # of the checker or of shape inference: it depends on the damage
        raise damaged(path, first_line(error)) from error


def check_shapes(model: onnx.ModelProto, multiple: int) -> None:
    """Check that shapes fit together on a small image; OpenVINO doesn't, and crashes.

    Args:
        model: A graph that takes an image; left alone.
        multiple: What heights and widths that the network takes are multiples of.

    Raises:
        ValueError: A value is too large for any memory; or an error of onnx, which is of several
            kinds.
    """
    trial = onnx.ModelProto()
    trial.CopyFrom(model)
    for value in trial.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) in (IMAGE_AXES, CLIP_AXES):
            sizes[0].dim_value = 1
            sizes[-2].dim_value, sizes[-1].dim_value = trial_size(multiple)
    # Sizes that stand in the file are of other images; what is computed is inferred.
    del trial.graph.value_info[:]
    onnx.checker.check_model(trial)
    inferred = onnx.shape_inference.infer_shapes(trial, check_type=True, strict_mode=True)
    most = MAX_VALUES * multiple**2
    for value in inferred.graph.value_info:
        sizes = value.type.tensor_type.shape.dim
        if math.prod(max(size.dim_value, 1) for size in sizes) > most:
            raise ValueError(f"{value.name!r} is too large")


def damaged(path: str | os.PathLike, reason: str) -> CheckpointError:
    """The error for a file of ours whose graph isn't one that `save_onnx` writes.

    Args:
        path: The file.
        reason: What is wrong with it; it may quote the file.
    """
    return CheckpointError(f"ONNX file {path} is damaged: {printable(reason)}")


def stored_layers(model: onnx.ModelProto) -> list[OnnxLayer]:
    """Layers whose weight stands in the file, as integers or as floats, in the graph's order."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    integers = {}  # name of the tensor behind each dequantized value
    for node in model.graph.node:
        if node.op_type == DEQUANTIZE:
            integers[node.output[0]] = node.input[0]
    layers = []
    for node in model.graph.node:
        if node.op_type not in LAYERS:
            continue
        weight_name = node.input[1]
        weight = stored.get(integers.get(weight_name, weight_name))
        if weight is None:
            continue
        kind = _type_name(weight.data_type)
        name = node.name or node.output[0]
        layers.append(OnnxLayer(name, node.op_type, tuple(weight.dims), kind))
    return layers


def opset_of(model: onnx.ModelProto) -> int | None:
    """Version of ONNX's own operators that a graph takes; None where it takes none of them."""
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            return opset.version
    return None


def _type_name(number: int) -> str:
    kinds = onnx.TensorProto.DataType
    if number not in kinds.values():
        return f"unknown ({number})"
    return kinds.Name(number).lower()
