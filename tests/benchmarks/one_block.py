"""Which forms of quantization ONNX Runtime and OpenVINO run as integers, and how fast, on single blocks.

Blocks as in EDSR (two convolutions and a sum), IMDN (leaky activations, splits, a concatenation) and SwinIR (linear
layers after a normalisation), each in the forms that our quantizers could take. Prints a table and writes JSON:

    python tests/benchmarks/one_block.py --out build/one_block
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from integer_share import INTEGER_KERNELS, onnxruntime_layers, openvino_layers
from onnx import TensorProto, helper, numpy_helper
from tabulate import tabulate

from adabm_basicsr.deployment.runtimes import openvino_core

CHANNELS, SIZE = 64, 128
OPSET = 21
SCALE = 4 / 255


@dataclass(frozen=True)
class Form:
    """How a block is quantized.

    Attributes:
        inputs: Whether what a layer takes is quantized: uint8 with a zero point.
        outputs: Whether what a layer gives is quantized too, and so the branches of a sum.
        weights: Whether weights are quantized, signed and with a scale per output channel.
        clip: None, or where values are kept to fewer than 8 bits: "integer" after the quantization, "float" before it.
        bias: "float", or "integer" (int32 at the product of the scales).
        equalised: None, or where channels are scaled: "before" the quantization, or "within" it, which then has a scale
            per channel.
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
    """Collects the nodes of one block in one form."""

    def __init__(self, form: Form) -> None:
        self.form, self.nodes, self.constants = form, [], []
        self.random = np.random.default_rng(0)

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", **attributes)
        )
        return name

    def quantized(
        self, x: str, bits: int = 4, factors: np.ndarray | None = None, axis: int = 1
    ) -> str:
        scale, zero = self.constant(np.float32(SCALE)), self.constant(np.uint8(128))
        if self.form.clip == "float":
            ends = [self.constant(np.float32(sign * 2 ** (bits - 1) * SCALE)) for sign in (-1, 1)]
            x = self.add("Clip", x, *ends)
        if factors is None:
            x = self.add("QuantizeLinear", x, scale, zero)
        else:
            ends = (
                self.constant(np.float32(SCALE) / factors),
                self.constant(np.full(len(factors), 128, np.uint8)),
            )
            x = self.add("QuantizeLinear", x, *ends, axis=axis)
        if self.form.clip == "integer":
            half = 2 ** (bits - 1)
            x = self.add(
                "Clip", x, *(self.constant(np.uint8(128 + end)) for end in (-half, half - 1))
            )
        return self.add("DequantizeLinear", x, scale, zero)

    def layer_input(self, x: str, axes: int) -> str:
        if not self.form.inputs:
            return x
        factors = (
            self.random.uniform(0.5, 2, CHANNELS).astype(np.float32)
            if self.form.equalised
            else None
        )
        if self.form.equalised == "within":
            return self.quantized(x, factors=factors, axis=1 if axes else 2)
        if self.form.equalised == "before":
            x = self.add("Mul", x, self.constant(factors.reshape(-1, *[1] * axes)))
        return self.quantized(x)

    def weight(self, shape: tuple[int, ...], axis: int) -> tuple[str, np.ndarray]:
        steps = self.random.uniform(0.5, 1.5, shape[axis]).astype(np.float32) / 1000
        integers = self.random.integers(-8, 8, shape).astype(np.int8)
        if not self.form.weights:
            view = steps.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            return self.constant(integers * view), steps
        zeros = self.constant(np.zeros(shape[axis], np.int8))
        return self.add(
            "DequantizeLinear", self.constant(integers), self.constant(steps), zeros, axis=axis
        ), steps

    def bias(self, steps: np.ndarray) -> str:
        if self.form.bias == "float" or not self.form.inputs:
            return self.constant(self.random.normal(0, 0.1, len(steps)).astype(np.float32))
        integers = self.random.integers(-1000, 1000, len(steps)).astype(np.int32)
        zeros = self.constant(np.zeros(len(steps), np.int32))
        return self.add(
            "DequantizeLinear",
            self.constant(integers),
            self.constant(steps * np.float32(SCALE)),
            zeros,
            axis=0,
        )

    def layer_output(self, x: str) -> str:
        return self.quantized(x) if self.form.outputs else x

    def conv(
        self, x: str, inputs: int, outputs: int, size: int, activation: str | None = None
    ) -> str:
        x = (
            self.layer_input(x, axes=2)
            if inputs == CHANNELS
            else (self.quantized(x) if self.form.inputs else x)
        )
        weight, steps = self.weight((outputs, inputs, size, size), 0)
        x = self.add("Conv", x, weight, self.bias(steps), pads=[size // 2] * 4)
        if activation:
            x = self.add(activation, x, **({"alpha": 0.05} if activation == "LeakyRelu" else {}))
        return self.layer_output(x)

    def linear(self, x: str) -> str:
        x = self.add("MatMul", self.layer_input(x, axes=0), self.weight((CHANNELS, CHANNELS), 1)[0])
        return self.layer_output(self.add("Add", x, self.constant(np.zeros(CHANNELS, np.float32))))


def edsr(graph: Graph, x: str) -> str:
    """Two convolutions and a sum."""
    y = graph.conv(graph.conv(x, CHANNELS, CHANNELS, 3, "Relu"), CHANNELS, CHANNELS, 3)
    return graph.layer_output(graph.add("Add", x, y))


def imdn(graph: Graph, x: str) -> str:
    """Distillation: a quarter of the channels set aside twice, all put together by a 1x1 convolution."""
    kept, y, parts = [], x, graph.constant(np.array([16, 48], np.int64))
    for inputs in (CHANNELS, 48):
        y = graph.conv(y, inputs, CHANNELS, 3, "LeakyRelu")
        names = [f"part{len(kept)}", f"rest{len(kept)}"]
        graph.nodes.append(helper.make_node("Split", [y, parts], names, axis=1))
        kept.append(names[0])
        y = names[1]
    y = graph.add("Concat", *kept, graph.conv(y, 48, 32, 3), axis=1)
    return graph.add("Add", x, graph.conv(y, CHANNELS, CHANNELS, 1))


def swinir(graph: Graph, x: str) -> str:
    """Normalisation and two linear layers on pixels as tokens, and a sum."""
    shape = graph.constant(np.array([1, CHANNELS, SIZE * SIZE], np.int64))
    tokens = graph.add("Transpose", graph.add("Reshape", x, shape), perm=[0, 2, 1])
    ones, zeros = (graph.constant(np.full(CHANNELS, v, np.float32)) for v in (1, 0))
    y = graph.linear(graph.add("LayerNormalization", tokens, ones, zeros, axis=-1))
    y = graph.linear(graph.add("Gelu", y))
    y = graph.add("Transpose", graph.add("Add", tokens, y), perm=[0, 2, 1])
    return graph.add("Reshape", y, graph.constant(np.array([1, CHANNELS, SIZE, SIZE], np.int64)))


BLOCKS: dict[str, Callable[[Graph, str], str]] = {"EDSR": edsr, "IMDN": imdn, "SwinIR": swinir}


def build(block: Callable[[Graph, str], str], form: Form) -> onnx.ModelProto:
    """An ONNX model of one block."""
    graph = Graph(form)
    result = block(graph, "x")
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])]
        for name in ("x", result)
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "block", *ends, graph.constants),
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


def onnx_runtime(path: str, x: np.ndarray, repeats: int) -> tuple[float, str, np.ndarray]:
    """Seconds, layers that run as integers, output."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    took = seconds(lambda: session.run(None, {"x": x}), repeats)
    return (
        took,
        _counted(
            [layer["op_name"] in INTEGER_KERNELS for layer in onnxruntime_layers(path, {"x": x})]
        ),
        session.run(None, {"x": x})[0],
    )


def open_vino(path: str, x: np.ndarray, repeats: int) -> tuple[float, str, np.ndarray]:
    """Seconds, layers that run as integers, output."""
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    took = seconds(lambda: compiled(x), repeats)
    return took, _counted([integer for _, integer in openvino_layers(compiled)]), compiled(x)[0]


def _counted(integer: list[bool]) -> str:
    return f"{sum(integer)} of {len(integer)}"


def measure(repeats: int) -> list[dict]:
    """A row for each block and form."""
    x, rows = (
        np.random.default_rng(1).normal(0, 0.5, (1, CHANNELS, SIZE, SIZE)).astype(np.float32),
        [],
    )
    for block_name, block in BLOCKS.items():
        for form_name, form in FORMS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/block.onnx"
                onnx.save(build(block, form), path)
                ort, ov = onnx_runtime(path, x, repeats), open_vino(path, x, repeats)
            row = {
                "block": block_name,
                "form": form_name,
                "ort_ms": 1000 * ort[0],
                "ort_integer": ort[1],
            }
            difference = float(np.abs(ort[2] - ov[2]).max())
            rows.append(
                {
                    **row,
                    "openvino_ms": 1000 * ov[0],
                    "openvino_integer": ov[1],
                    "difference": difference,
                }
            )
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
