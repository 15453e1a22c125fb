"""An ONNX graph whose nodes are moved and replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from itertools import count
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from adabm_basicsr.deployment.onnx.reference import evaluator

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"
ZERO = 2  # which input of the two the zero points are


class EditedGraph:
    """The graph of a model, with its constants; nodes may stand in any order until `sort`.

    What depends on constants alone is computed at once, so that scales and zero points can be read.
    Quantized weights stay integers, biases of 32 bits become floats.

    Args:
        model: The model; changed in place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        _fold(model)
        self.graph = model.graph
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}

    # Looking

    def of_type(self, *kinds: str) -> list[onnx.NodeProto]:
        """The nodes of these operators."""
        return [node for node in self.graph.node if node.op_type in kinds]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node whose output a value is; None for constants and inputs of the graph."""
        for node in self.graph.node:
            if name in node.output:
                return node
        return None

    def only_taker(self, name: str) -> onnx.NodeProto | None:
        """The node that takes a value, if it is the only one and the value is no output."""
        takers = [node for node in self.graph.node if name in node.input]
        outputs = [output.name for output in self.graph.output]
        if len(takers) != 1 or name in outputs:
            return None
        return takers[0]

    def takers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that take what a node makes; none if that is an output of the graph."""
        outputs = {output.name for output in self.graph.output}
        if not outputs.isdisjoint(node.output):
            return []
        made = set(node.output)
        return [taker for taker in self.graph.node if not made.isdisjoint(taker.input)]

    def is_taken(self, name: str) -> bool:
        """Whether a node takes a value."""
        return any(name in node.input for node in self.graph.node)

    def is_constant(self, name: str) -> bool:
        """Whether a value is a constant of the graph."""
        return name in self._constants

    def constant(self, name: str) -> np.ndarray:
        """A constant's value."""
        return numpy_helper.to_array(self._constants[name])

    def constant_of(self, node: onnx.NodeProto, place: int) -> np.ndarray:
        """Value of the constant that a node takes as its input of that place."""
        return self.constant(node.input[place])

    def scales_of(self, node: onnx.NodeProto) -> np.ndarray:
        """Scales of a ``QuantizeLinear`` or ``DequantizeLinear``."""
        return self.constant_of(node, 1)

    def zeros_of(self, node: onnx.NodeProto) -> np.ndarray:
        """Zero points of a ``QuantizeLinear`` or ``DequantizeLinear``."""
        return self.constant_of(node, 2)

    # Changing

    def add_constant(self, value: ArrayLike) -> str:
        """Add a constant of the value's shape and return its name.

        A single number gets the shape ``()``: engines take scales of another shape for those of
        channels, or not at all.
        """
        name = self._new_name()
        tensor = numpy_helper.from_array(np.asarray(value), name)
        self._constants[name] = tensor
        self.graph.initializer.append(tensor)
        return name

    def give_constant(self, node: onnx.NodeProto, place: int, value: ArrayLike) -> None:
        """Let a node take a new constant as its input of that place."""
        node.input[place] = self.add_constant(value)

    def _new_name(self) -> str:
        numbers = count(len(self._constants))
        name = f"constant_{next(numbers)}"
        while name in self._constants:
            name = f"constant_{next(numbers)}"
        return name

    def add_node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node that makes a new value."""
        node = helper.make_node(kind, inputs, [output], name=output, **attributes)
        self.graph.node.append(node)

    def insert(
        self, kind: str, constants: Sequence[str], node: onnx.NodeProto, output: str
    ) -> None:
        """Add a node in front of the first input of ``node``.

        ``x -> node`` becomes ``x -> kind(x, *constants) = output -> node``.
        """
        self.add_node(kind, [node.input[0], *constants], output)
        node.input[0] = output

    def swap(self, first: onnx.NodeProto, second: onnx.NodeProto) -> None:
        """Let ``second``, the only taker of what ``first`` makes, come before it.

        ``x -> first -> second -> y`` becomes ``x -> second -> first -> y``.
        """
        source = first.input[0]
        between = first.output[0]
        result = second.output[0]
        place = list(second.input).index(between)
        second.input[place] = source
        second.output[0] = between
        first.input[0] = between
        first.output[0] = result

    def bypass(self, node: onnx.NodeProto) -> None:
        """Take out a node; who took its output takes its first input instead."""
        self.replace_value(node.output[0], node.input[0])
        self.graph.node.remove(node)

    def replace_value(self, old: str, new: str) -> None:
        """Let every node that takes the value ``old`` take ``new``."""
        for node in self.graph.node:
            for place, name in enumerate(list(node.input)):
                if name == old:
                    node.input[place] = new

    def sort(self) -> None:
        """Put nodes behind those whose outputs they take, and drop constants that none takes."""
        nodes = list(self.graph.node)
        makers = {}
        for index, node in enumerate(nodes):
            for name in node.output:
                makers[name] = index
        needed = {}
        for index, node in enumerate(nodes):
            needed[index] = {makers[name] for name in node.input if name in makers}
        order = TopologicalSorter(needed).static_order()
        _replace_all(self.graph.node, [nodes[index] for index in order])

        taken = _inputs_of(nodes)
        kept = [tensor for tensor in self.graph.initializer if tensor.name in taken]
        _replace_all(self.graph.initializer, kept)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute, or ``default`` where the node has none of that name."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


def check_grids(model: onnx.ModelProto) -> None:
    """Check that scales and zero points fit together, without which OpenVINO may crash.

    Raises:
        ValueError: Those of a quantization differ in shape.
    """
    edited = EditedGraph(model)
    for node in edited.of_type(QUANTIZE, DEQUANTIZE):
        if len(node.input) <= ZERO or not edited.is_constant(node.input[ZERO]):
            continue
        scales = edited.scales_of(node)
        zeros = edited.zeros_of(node)
        if scales.size != zeros.size:
            raise ValueError(
                f"{node.name!r} has scales {scales.shape} and zero points {zeros.shape}"
            )


def set_scales(
    edited: EditedGraph, quantize: onnx.NodeProto, scales: ArrayLike, zeros: ArrayLike
) -> None:
    """Give a ``QuantizeLinear`` other scales and zero points.

    Args:
        edited: The graph.
        quantize: The node.
        scales: ``(C,)``, of the channels on axis 1, or ``()``, one for all.
        zeros: Zero points, of the shape of ``scales``.
    """
    edited.give_constant(quantize, 1, scales)
    edited.give_constant(quantize, 2, zeros)
    del quantize.attribute[:]
    if np.ndim(scales):
        quantize.attribute.append(helper.make_attribute("axis", 1))


def _fold(model: onnx.ModelProto) -> None:
    """Make constants of what depends on constants alone, but leave quantized weights integers."""
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    biases = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT32}
    folded = []
    others = []
    for node in graph.node:
        inputs = [name for name in node.input if name]
        is_weight = node.op_type == DEQUANTIZE and node.input[0] not in biases
        if not is_weight and known.issuperset(inputs):
            folded.append(node)
            known.update(node.output)
        else:
            others.append(node)

    taken = _inputs_of(others)
    taken.update(output.name for output in graph.output)
    wanted: list[str] = []
    for node in folded:
        wanted.extend(name for name in node.output if name in taken)
    for name, value in _evaluate(model, folded, wanted).items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    _replace_all(graph.node, others)


def _evaluate(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]
) -> dict[str, np.ndarray]:
    """The ``wanted`` values, which ``nodes`` make from constants of the model."""
    if not wanted:
        return {}
    taken = _inputs_of(nodes)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in taken]
    outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in wanted]
    graph = helper.make_graph(nodes, "constants", [], outputs, constants)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    values = evaluator(part).run(None, {})
    return {name: np.asarray(value) for name, value in zip(wanted, values, strict=True)}


def _inputs_of(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names of all values that the nodes take."""
    taken: set[str] = set()
    for node in nodes:
        taken.update(node.input)
    return taken


def _replace_all(field: Any, values: list) -> None:
    """Fill a repeated field of a protobuf message with other values."""
    del field[:]
    field.extend(values)
