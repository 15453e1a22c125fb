"""Which share of a graph's MACs the runtimes execute as integers, by their own account."""

from __future__ import annotations

import json
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino

from adabm_basicsr import OnnxNetwork
from adabm_basicsr.deployment.runtimes import KEPT_OUT, openvino_core

SIZE = 64
INTEGER_KERNELS = {
    "QLinearConv",
    "ConvInteger",
    "QLinearMatMul",
    "MatMulInteger",
    "QGemm",
    "MatMulIntegerToFloat",
}
CONVOLUTIONS = {"Conv", "FusedConv", "QLinearConv", "ConvInteger", "Convolution"}
PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "FullyConnected", *INTEGER_KERNELS}


def integer_share(path: Path, runtime: str, level: int = 1) -> float:
    """Share of the MACs, 0..1, that an exported file executes as integers.

    Args:
        path: A file that `save_onnx` wrote.
        runtime: "openvino" or "onnxruntime".
        level: Image class, 0 to 2.
    """
    total = 0
    as_integers = 0
    for macs, integer in executed_layers(path, runtime, level):
        total += macs
        if integer:
            as_integers += macs
    return as_integers / total


def executed_layers(path: Path, runtime: str, level: int = 1) -> list[tuple[int, bool]]:
    """MACs of each layer on an image of `SIZE`, and whether it runs as integers."""
    network = OnnxNetwork(path, runtime)
    model = network.graph_at(level).SerializeToString()
    shape = [1, network.in_channels, SIZE, SIZE]
    if runtime == "openvino":
        graph = openvino_core().read_model(model)
        graph.reshape(shape)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        return openvino_layers(openvino_core().compile_model(graph, "CPU", settings))
    feed = {"image": np.full(shape, 0.5, np.float32)}
    layers = onnxruntime_layers(model, feed, disabled_optimizers=KEPT_OUT)
    return [_macs_of_profiled(layer) for layer in layers]


def openvino_layers(compiled: openvino.CompiledModel) -> list[tuple[int, bool]]:
    """MACs of each layer of a model of fixed size, and whether it runs as integers."""
    layers = []
    for op in compiled.get_runtime_model().get_ops():
        facts = {}
        for key, value in op.get_rt_info().items():
            facts[key] = str(getattr(value, "value", value))
        kind = facts.get("layerType")
        if kind in CONVOLUTIONS | PRODUCTS:
            first, second = [_shape(value) for value in op.inputs()[:2]]
            output = list(op.get_output_partial_shape(0).to_shape())
            integer = facts.get("runtimePrecision") in ("u8", "i8")
            layers.append((_macs(kind, first, second, output), integer))
    return layers


def _shape(value: openvino.Input) -> list[int]:
    return list(value.get_partial_shape().to_shape())


def onnxruntime_layers(
    model: bytes | str, feed: dict[str, np.ndarray], **settings: Any
) -> list[dict]:
    """What ONNX Runtime's profile says of each convolution and product that runs on ``feed``.

    ``settings`` are those of the session.
    """
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(model, options, **settings)
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    layers = []
    for event in events:
        if event.get("name", "").endswith("kernel_time"):
            layer = event["args"]
            if layer["op_name"] in CONVOLUTIONS | PRODUCTS:
                layers.append(layer)
    return layers


def _macs_of_profiled(layer: dict) -> tuple[int, bool]:
    """MACs of a layer of ONNX Runtime's profile, and whether it runs as integers."""
    inputs = _profiled_shapes(layer["input_type_shape"])
    outputs = _profiled_shapes(layer["output_type_shape"])
    # Integer kernels take scales and zero points too.
    first, second, *_ = [shape for shape in inputs if len(shape) > 1]
    kind = layer["op_name"]
    return _macs(kind, first, second, outputs[0]), kind in INTEGER_KERNELS


def _profiled_shapes(entries: list[dict[str, list[int]]]) -> list[list[int]]:
    """Shapes in a profile, where each is the only value of a dictionary: ``{"float": [1, 3]}``."""
    return [next(iter(entry.values())) for entry in entries]


def _macs(kind: str, first: list[int], second: list[int], output: list[int]) -> int:
    """MACs of a layer from the shapes of its first input, of its weights and of its output."""
    per_value = first[-1]
    if kind in CONVOLUTIONS:
        per_value = prod(second[1:])
    return prod(output) * per_value
