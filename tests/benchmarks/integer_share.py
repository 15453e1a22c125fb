"""Which share of a graph's MACs the runtimes execute as integers, by their own account."""

from __future__ import annotations

import json
import tempfile
from math import prod
from pathlib import Path

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
    """Of an exported file at one image level, in 0..1."""
    layers = executed_layers(path, runtime, level)
    return sum(macs for macs, integer in layers if integer) / sum(macs for macs, _ in layers)


def executed_layers(path: Path, runtime: str, level: int = 1) -> list[tuple[int, bool]]:
    """MACs of each layer on an image of `SIZE`, and whether it runs as integers."""
    network = OnnxNetwork(path, runtime)
    model, shape = network.graph_at(level).SerializeToString(), [1, network.in_channels, SIZE, SIZE]
    if runtime == "openvino":
        graph = openvino_core().read_model(model)
        graph.reshape(shape)
        return openvino_layers(
            openvino_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        )
    feed = {"image": np.full(shape, 0.5, np.float32)}
    told = onnxruntime_layers(model, feed, disabled_optimizers=KEPT_OUT)
    return [_with_macs(layer) for layer in told]


def _macs(kind: str, first: list[int], second: list[int], output: list[int]) -> int:
    return prod(output) * (prod(second[1:]) if kind in CONVOLUTIONS else first[-1])


def openvino_layers(compiled: openvino.CompiledModel) -> list[tuple[int, bool]]:
    """MACs of each layer of a model of fixed size, and whether it runs as integers."""
    layers = []
    for op in compiled.get_runtime_model().get_ops():
        told = {key: str(getattr(value, "value", value)) for key, value in op.get_rt_info().items()}
        kind = told.get("layerType")
        if kind in CONVOLUTIONS | PRODUCTS:
            first, second = (
                list(value.get_partial_shape().to_shape()) for value in op.inputs()[:2]
            )
            macs = _macs(kind, first, second, list(op.get_output_partial_shape(0).to_shape()))
            layers.append((macs, told.get("runtimePrecision") in ("u8", "i8")))
    return layers


def onnxruntime_layers(model: bytes | str, feed: dict[str, np.ndarray], **settings) -> list[dict]:
    """What ONNX Runtime's profile tells of each layer that runs on ``feed``; ``settings`` are those of the session."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(model, options, **settings)
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    told = [event["args"] for event in events if event.get("name", "").endswith("kernel_time")]
    return [layer for layer in told if layer["op_name"] in CONVOLUTIONS | PRODUCTS]


def _with_macs(told: dict) -> tuple[int, bool]:
    inputs, outputs = (
        [next(iter(entry.values())) for entry in told[f"{io}_type_shape"]]
        for io in ("input", "output")
    )
    matrices = [
        entry for entry in inputs if len(entry) > 1
    ]  # integer kernels take scales and zero points too
    return _macs(told["op_name"], *matrices[:2], outputs[0]), told["op_name"] in INTEGER_KERNELS
