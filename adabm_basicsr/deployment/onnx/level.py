"""Parts of an adaptive graph: what chooses the image class, and what runs at one class.

A *level*, in files, flags and names, is the index of an image class: 0 for simple images, 1 for
middle ones, 2 for complex ones. 3 stands for images that are so complex that they run in full
precision, where a network has such: its graph makes both images, and chooses between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor
from torch import Tensor

# Names of the graph's input and outputs.
IMAGE = "image"
OUTPUT = "output"
LEVEL = "level"
LEVELS = (0, 1, 2)
FULL = 3  # the level of images in full precision
MIDDLE = 1  # the level of networks that know no classes


class Part(NamedTuple):
    """A part of a graph that is run by itself.

    Attributes:
        inputs: Names of values that it takes, beside the level.
        outputs: Names of what it makes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


WHOLE = Part((IMAGE,), (OUTPUT,))


def chooser(model: onnx.ModelProto) -> onnx.ModelProto:
    """The part of an adaptive graph that computes the level: ``image`` to ``level``."""
    return Extractor(model).extract_model([IMAGE], [LEVEL])


def is_adaptive(model: onnx.ModelProto) -> bool:
    """Whether the level depends on the image."""
    return any(IMAGE in node.input for node in chooser(model).graph.node)


def part_of(model: onnx.ModelProto, part: Part) -> onnx.ModelProto:
    """A part of a graph, with what the graph says of itself.

    Args:
        model: The graph; left alone.
        part: The part; its outputs depend on its inputs alone.
    """
    found = Extractor(model).extract_model(list(part.inputs), list(part.outputs))
    found.metadata_props.extend(model.metadata_props)
    return found


def at_level(model: onnx.ModelProto, level: int, part: Part = WHOLE) -> onnx.ModelProto:
    """An adaptive graph with the level as a constant: ``image`` to ``output``.

    Runtimes can then fold all that depends on the level. INT4 weights become INT8, the type that
    integer kernels of CPUs take.

    Args:
        model: An adaptive graph; left alone.
        level: 0, 1 or 2, or 3 where images run in full precision.
        part: Which part of it.
    """
    fixed = part_of(_chosen(model, level), Part((*part.inputs, LEVEL), part.outputs))
    inputs = fixed.graph.input
    names = [value.name for value in inputs]
    del inputs[names.index(LEVEL)]
    constant = helper.make_tensor(LEVEL, TensorProto.INT64, (), [level])
    fixed.graph.initializer.append(constant)
    for tensor in fixed.graph.initializer:
        if tensor.data_type == TensorProto.INT4:
            wide = numpy_helper.to_array(tensor).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    return fixed


def choose_precision(level: Tensor, full: Tensor, quantized: Tensor) -> Tensor:
    """The image in full precision where the level says so, or else the quantized one.

    Args:
        level: The level, ``()``.
        full: ``(1, C, sH, sW)``.
        quantized: The same.
    """
    return torch.where(level == FULL, full, quantized)


def _chosen(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
    """A graph without the choice of `choose_precision`, which the level makes.

    What isn't chosen is left without a taker.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    choice = makers[OUTPUT]
    condition = makers.get(choice.input[0])
    if choice.op_type != "Where" or condition is None or LEVEL not in condition.input:
        return model
    chosen = onnx.ModelProto()
    chosen.CopyFrom(model)
    _, full, quantized = choice.input
    wanted = full if level == FULL else quantized
    chosen.graph.node.remove(choice)
    for node in chosen.graph.node:
        node.input[:] = _renamed(node.input, wanted, OUTPUT)
        node.output[:] = _renamed(node.output, wanted, OUTPUT)
    return chosen


def _renamed(names: Iterable[str], old: str, new: str) -> list[str]:
    """Names of values, one of which is another now."""
    return [new if name == old else name for name in names]
