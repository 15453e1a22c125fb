"""An ONNX graph whose nodes are moved and replaced."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import TopologicalSorter
from itertools import count

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class EditedGraph:
    """The graph of a model, with its constants; nodes may stand in any order until `sort`.

    Args:
        model: The model; changed in place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        _fold(model)
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def of_type(self, *kinds: str) -> list[onnx.NodeProto]:
        """The nodes of these operators."""
        return [node for node in self.graph.node if node.op_type in kinds]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node whose output a value is."""
        return next((node for node in self.graph.node if name in node.output), None)

    def only_taker(self, name: str) -> onnx.NodeProto | None:
        """The node that a value is an input of, if it is the only one and nothing else is made of the value."""
        takers = [node for node in self.graph.node if name in node.input]
        return (
            takers[0]
            if len(takers) == 1 and name not in (output.name for output in self.graph.output)
            else None
        )

    def is_constant(self, name: str) -> bool:
        """Whether a value is a constant of the graph."""
        return name in self._constants

    def constant(self, name: str) -> np.ndarray:
        """A constant's value."""
        return numpy_helper.to_array(self._constants[name])

    def add_constant(self, value: np.ndarray) -> str:
        """The name of a new constant."""
        name = next(
            name
            for at in count(len(self._constants))
            if (name := f"constant_{at}") not in self._constants
        )
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.graph.initializer.append(self._constants[name])
        return name

    def add_node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> None:
        """Add a node that makes a new value."""
        self.graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))

    def swap(self, first: onnx.NodeProto, second: onnx.NodeProto) -> None:
        """Let ``second``, the only taker of what ``first`` makes, come before it."""
        at = list(second.input).index(first.output[0])
        second.input[at], first.input[0] = first.input[0], first.output[0]
        second.output[0], first.output[0] = first.output[0], second.output[0]

    def bypass(self, node: onnx.NodeProto) -> None:
        """Take out a node that gives its first input unchanged."""
        for taker in self.graph.node:
            for at in [at for at, name in enumerate(taker.input) if name == node.output[0]]:
                taker.input[at] = node.input[0]
        self.graph.node.remove(node)

    def sort(self) -> None:
        """Put nodes behind those whose outputs they take, and forget constants that none takes."""
        nodes = list(self.graph.node)
        makers = {name: index for index, node in enumerate(nodes) for name in node.output}
        needed = {
            index: {makers[name] for name in node.input if name in makers}
            for index, node in enumerate(nodes)
        }
        _replace(
            self.graph.node, [nodes[index] for index in TopologicalSorter(needed).static_order()]
        )
        taken = {name for node in nodes for name in node.input}
        _replace(
            self.graph.initializer,
            [tensor for tensor in self.graph.initializer if tensor.name in taken],
        )


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Value of a node's attribute."""
    return next(
        (helper.get_attribute_value(found) for found in node.attribute if found.name == name),
        default,
    )


def _fold(model: onnx.ModelProto) -> None:
    """Compute what depends on constants alone, but leave quantized weights as they are."""
    graph = model.graph
    known, constant, others = {tensor.name for tensor in graph.initializer}, [], []
    for node in graph.node:
        folds = node.op_type != DEQUANTIZE and known.issuperset(filter(None, node.input))
        (constant if folds else others).append(node)
        known |= set(node.output) if folds else set()
    taken = {name for node in others for name in node.input} | {
        output.name for output in graph.output
    }
    wanted = [name for node in constant for name in node.output if name in taken]
    values = _evaluate(model, constant, wanted)
    _replace(graph.node, others)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()
    )


def _evaluate(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]
) -> dict[str, np.ndarray]:
    if not wanted:
        return {}
    taken = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in taken]
    outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in wanted]
    graph = helper.make_graph(nodes, "constants", [], outputs, constants)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return dict(zip(wanted, ReferenceEvaluator(part).run(None, {})))


def _replace(field, values: list) -> None:
    del field[:]
    field.extend(values)
