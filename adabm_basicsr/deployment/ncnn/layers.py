"""Layers of an ncnn network, and the text and bytes that ncnn reads them from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

MAGIC = "7767517"  # the first line of every .param
INT8_TAG = 0x000D4B38
FLOAT_TAG = 0
ALIGNMENT = 4  # bytes
# Keys of lists are written as numbers below this one.
LIST_KEY = -23300

Number = int | float
Parameter = Number | Sequence[Number]


@dataclass
class Layer:
    """One layer.

    Attributes:
        kind: Its type in ncnn.
        inputs: Names of the blobs that it takes.
        outputs: Names of the blobs that it makes.
        parameters: Parameters by ncnn's numbers.
        weights: What it has in the ``.bin``, in the order in which ncnn reads it.
    """

    kind: str
    inputs: list[str]
    outputs: list[str]
    parameters: Mapping[int, Parameter] = field(default_factory=dict)
    weights: list[bytes] = field(default_factory=list)


def with_splits(layers: Iterable[Layer]) -> list[Layer]:
    """The layers with a copy of each blob for each that takes it, as ncnn wants it.

    Args:
        layers: In the order in which they run.
    """
    layers = list(layers)
    takers: Counter[str] = Counter()
    for layer in layers:
        takers.update(layer.inputs)
    split = []
    copies: defaultdict[str, list[str]] = defaultdict(list)
    for layer in layers:
        inputs = [copies[name].pop(0) if copies[name] else name for name in layer.inputs]
        split.append(Layer(layer.kind, inputs, layer.outputs, layer.parameters, layer.weights))
        for name in layer.outputs:
            if takers[name] > 1:
                copies[name] = [f"{name}_{index}" for index in range(takers[name])]
                split.append(Layer("Split", [name], list(copies[name])))
    return split


def param_text(layers: Sequence[Layer]) -> str:
    """The ``.param`` of layers in which each blob is taken once."""
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [MAGIC, f"{len(layers)} {blobs}"]
    for index, layer in enumerate(layers):
        words = [layer.kind, f"{layer.kind}_{index}"]
        words += [str(len(layer.inputs)), str(len(layer.outputs))]
        words += [*layer.inputs, *layer.outputs]
        for key, value in layer.parameters.items():
            words.append(_parameter_text(key, value))
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _parameter_text(key: int, value: Parameter) -> str:
    if isinstance(value, (int, float)):
        return f"{key}={_number_text(value)}"
    numbers = [_number_text(number) for number in value]
    return f"{LIST_KEY - key}={len(numbers)},{','.join(numbers)}"


def _number_text(value: Number) -> str:
    """A number in fewer than 16 characters, which is what ncnn reads; floats to 9 digits."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.8e}"


def bin_bytes(layers: Iterable[Layer]) -> bytes:
    """The ``.bin`` of layers."""
    return b"".join(b"".join(layer.weights) for layer in layers)


def floats(values: ArrayLike) -> bytes:
    """Values without a tag: biases, scales and slopes."""
    return np.ascontiguousarray(values, np.float32).tobytes()


def float_weight(values: ArrayLike) -> bytes:
    """A weight in float32."""
    return _tag(FLOAT_TAG) + floats(values)


def int8_weight(values: ArrayLike) -> bytes:
    """A weight as integers of 8 bits."""
    content = np.ascontiguousarray(values, np.int8).tobytes()
    return _tag(INT8_TAG) + content + bytes(-len(content) % ALIGNMENT)


def _tag(value: int) -> bytes:
    return value.to_bytes(4, "little")
