"""Which forms of quantization ONNX Runtime and OpenVINO run as integers, and how fast.

    python tests/benchmarks/one_block.py --out build/one_block

Measured on single blocks: as in EDSR (two convolutions and a sum), IMDN (leaky activations, splits,
a concatenation) and SwinIR (linear layers after a normalisation), each in the forms that our
quantizers could take. Prints a table and writes ``one_block.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from integer_share import INTEGER_KERNELS, onnxruntime_layers, openvino_layers
from onnx import TensorProto, helper, numpy_helper
from tabulate import tabulate

from adabm_basicsr.deployment.runtimes import openvino_core

CHANNELS = 64
SIZE = 128
OPSET = 21
# Of activations.
SCALE = 4 / 255


@dataclass(frozen=True)
class Form:
    """How a block is quantized.

    Attributes:
        inputs: Whether what a layer takes is quantized: uint8 with a zero point.
        outputs: Whether what a layer gives is quantized too, and so the branches of a sum.
        weights: Whether weights are quantized, signed and with a scale per output channel.
        clip: None, or where values are kept to fewer than 8 bits: "integer" after the quantization,
            "float" before it.
        bias: "float", or "integer" (int32 at the product of the scales).
        equalised: None, or where channels are scaled: "before" the quantization, or "within" it,
            which then has a scale per channel.
    """

    inputs: bool = True
    outputs: bool = False
    weights: bool = True
    clip: str | None = None
    bias: str = "float"
    equalised: str | None = None


FORMS = {
    "float32": Form(inputs=False, weights=False),
    "inputs": Form(),
    "inputs, int32 bias": Form(bias="integer"),
    "inputs and outputs": Form(outputs=True),
    "inputs and outputs, int32 bias": Form(outputs=True, bias="integer"),
    "inputs and outputs, float clip": Form(outputs=True, bias="integer", clip="float"),
    "inputs and outputs, integer clip": Form(outputs=True, bias="integer", clip="integer"),
    "inputs, integer clip": Form(bias="integer", clip="integer"),
    "inputs, equalised channels": Form(bias="integer", equalised="before"),
    "inputs, channels equalised within": Form(bias="integer", equalised="within"),
    "inputs, integer clip, channels equalised within": Form(
        bias="integer", clip="integer", equalised="within"
    ),
}


class Graph:
    """Collects the nodes of one block in one form.

    Methods that add nodes take the names of their inputs and return the name of their output.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, value: np.ndarray) -> str:
        """Add a constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output."""
        name = f"t{len(self.nodes)}"
        node = helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", **attributes)
        self.nodes.append(node)
        return name

    def quantized(self, x: str, factors: np.ndarray | None = None, axis: int = 1) -> str:
        """``x`` quantized and dequantized, clipped to 4 bits where the form clips.

        Args:
            x: A tensor.
            factors: By which channels are multiplied within the quantization.
            axis: That of the channels.
        """
        scale = self.constant(np.float32(SCALE))
        zero = self.constant(np.uint8(128))
        if self.form.clip == "float":
            lowest = self.constant(np.float32(-8 * SCALE))
            highest = self.constant(np.float32(8 * SCALE))
            x = self.add("Clip", x, lowest, highest)
        if factors is None:
            x = self.add("QuantizeLinear", x, scale, zero)
        else:
            scales = self.constant(np.float32(SCALE) / factors)
            zeros = self.constant(np.full(len(factors), 128, np.uint8))
            x = self.add("QuantizeLinear", x, scales, zeros, axis=axis)
        if self.form.clip == "integer":
            lowest = self.constant(np.uint8(128 - 8))
            highest = self.constant(np.uint8(128 + 7))
            x = self.add("Clip", x, lowest, highest)
        return self.add("DequantizeLinear", x, scale, zero)

    def layer_input(self, x: str, axes: int) -> str:
        """What a layer takes, quantized and equalised as the form says.

        ``axes`` is the number of axes after that of the channels: 2 for images, 0 for tokens.
        """
        if not self.form.inputs:
            return x
        if not self.form.equalised:
            return self.quantized(x)
        factors = self.random.uniform(0.5, 2, CHANNELS).astype(np.float32)
        if self.form.equalised == "within":
            return self.quantized(x, factors, axis=1 if axes else 2)
        factors = factors.reshape(-1, *[1] * axes)
        return self.quantized(self.add("Mul", x, self.constant(factors)))

    def weight(self, shape: tuple[int, ...], axis: int) -> tuple[str, np.ndarray]:
        """A random weight and its scales, one per output channel; ``axis`` is that of these."""
        scales = self.random.uniform(0.5, 1.5, shape[axis]).astype(np.float32) / 1000
        integers = self.random.integers(-8, 8, shape).astype(np.int8)
        if not self.form.weights:
            of_channels = [1] * len(shape)
            of_channels[axis] = -1
            return self.constant(integers * scales.reshape(of_channels)), scales
        zeros = self.constant(np.zeros(shape[axis], np.int8))
        inputs = (self.constant(integers), self.constant(scales), zeros)
        return self.add("DequantizeLinear", *inputs, axis=axis), scales

    def bias(self, scales: np.ndarray) -> str:
        """A random bias of a layer whose weight has these scales."""
        if self.form.bias == "float" or not self.form.inputs:
            return self.constant(self.random.normal(0, 0.1, len(scales)).astype(np.float32))
        integers = self.random.integers(-1000, 1000, len(scales)).astype(np.int32)
        zeros = self.constant(np.zeros(len(scales), np.int32))
        inputs = (self.constant(integers), self.constant(scales * np.float32(SCALE)), zeros)
        return self.add("DequantizeLinear", *inputs, axis=0)

    def layer_output(self, x: str) -> str:
        """What a layer gives, quantized where the form says so."""
        if self.form.outputs:
            return self.quantized(x)
        return x

    def conv(
        self, x: str, inputs: int, outputs: int, size: int, activation: str | None = None
    ) -> str:
        """A convolution with kernels of ``size``; channels of all its inputs can be equalised."""
        if inputs == CHANNELS:
            x = self.layer_input(x, axes=2)
        elif self.form.inputs:
            x = self.quantized(x)
        weight, scales = self.weight((outputs, inputs, size, size), 0)
        x = self.add("Conv", x, weight, self.bias(scales), pads=[size // 2] * 4)
        if activation == "LeakyRelu":
            x = self.add("LeakyRelu", x, alpha=0.05)
        elif activation:
            x = self.add(activation, x)
        return self.layer_output(x)

    def linear(self, x: str) -> str:
        """A linear layer on tokens, with as many outputs as inputs."""
        x = self.layer_input(x, axes=0)
        weight, _ = self.weight((CHANNELS, CHANNELS), 1)
        x = self.add("MatMul", x, weight)
        bias = self.constant(np.zeros(CHANNELS, np.float32))
        return self.layer_output(self.add("Add", x, bias))


def edsr(graph: Graph, x: str) -> str:
    """Two convolutions and a sum."""
    y = graph.conv(x, CHANNELS, CHANNELS, 3, "Relu")
    y = graph.conv(y, CHANNELS, CHANNELS, 3)
    return graph.layer_output(graph.add("Add", x, y))


def imdn(graph: Graph, x: str) -> str:
    """Distillation: a quarter of the channels is set aside twice, a 1x1 convolution fuses all."""
    kept = []
    y = x
    parts = graph.constant(np.array([16, 48], np.int64))
    for inputs in (CHANNELS, 48):
        y = graph.conv(y, inputs, CHANNELS, 3, "LeakyRelu")
        part = f"part{len(kept)}"
        rest = f"rest{len(kept)}"
        graph.nodes.append(helper.make_node("Split", [y, parts], [part, rest], axis=1))
        kept.append(part)
        y = rest
    y = graph.add("Concat", *kept, graph.conv(y, 48, 32, 3), axis=1)
    return graph.add("Add", x, graph.conv(y, CHANNELS, CHANNELS, 1))


def swinir(graph: Graph, x: str) -> str:
    """Normalisation and two linear layers on pixels as tokens, and a sum."""
    shape = graph.constant(np.array([1, CHANNELS, SIZE * SIZE], np.int64))
    tokens = graph.add("Transpose", graph.add("Reshape", x, shape), perm=[0, 2, 1])
    ones = graph.constant(np.full(CHANNELS, 1, np.float32))
    zeros = graph.constant(np.full(CHANNELS, 0, np.float32))
    y = graph.linear(graph.add("LayerNormalization", tokens, ones, zeros, axis=-1))
    y = graph.linear(graph.add("Gelu", y))
    y = graph.add("Transpose", graph.add("Add", tokens, y), perm=[0, 2, 1])
    return graph.add("Reshape", y, graph.constant(np.array([1, CHANNELS, SIZE, SIZE], np.int64)))


BLOCKS: dict[str, Callable[[Graph, str], str]] = {"EDSR": edsr, "IMDN": imdn, "SwinIR": swinir}


def build(block: Callable[[Graph, str], str], form: Form) -> onnx.ModelProto:
    """An ONNX model of one block."""
    graph = Graph(form)
    result = block(graph, "x")
    shape = [1, CHANNELS, SIZE, SIZE]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "block",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@dataclass(frozen=True)
class Measured:
    """What one runtime does with one block.

    Attributes:
        seconds: Of a run.
        integer: How many of its layers run as integers: "1 of 2".
        output: ``(1, C, H, W)``.
    """

    seconds: float
    integer: str
    output: np.ndarray


def onnx_runtime(path: str, x: np.ndarray, repeats: int) -> Measured:
    """The block of an ONNX file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    took = seconds(lambda: session.run(None, {"x": x}), repeats)
    layers = onnxruntime_layers(path, {"x": x})
    integer = [layer["op_name"] in INTEGER_KERNELS for layer in layers]
    return Measured(took, _counted(integer), session.run(None, {"x": x})[0])


def open_vino(path: str, x: np.ndarray, repeats: int) -> Measured:
    """The block of an ONNX file in OpenVINO."""
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    took = seconds(lambda: compiled(x), repeats)
    integer = [is_integer for _, is_integer in openvino_layers(compiled)]
    return Measured(took, _counted(integer), compiled(x)[0])


def _counted(integer: list[bool]) -> str:
    return f"{sum(integer)} of {len(integer)}"


def measure(repeats: int) -> list[dict]:
    """A row for each block and form."""
    random = np.random.default_rng(1)
    x = random.normal(0, 0.5, (1, CHANNELS, SIZE, SIZE)).astype(np.float32)
    rows = []
    for block_name, block in BLOCKS.items():
        for form_name, form in FORMS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/block.onnx"
                onnx.save(build(block, form), path)
                ort = onnx_runtime(path, x, repeats)
                openvino = open_vino(path, x, repeats)
            row = {
                "block": block_name,
                "form": form_name,
                "ort_ms": 1000 * ort.seconds,
                "ort_integer": ort.integer,
                "openvino_ms": 1000 * openvino.seconds,
                "openvino_integer": openvino.integer,
                "difference": float(np.abs(ort.output - openvino.output).max()),
            }
            rows.append(row)
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/one_block"))
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    rows = measure(args.repeats)
    print(tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="github"))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "one_block.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
