"""Which share of a graph's MACs the runtimes execute as integers, by their own account."""

from __future__ import annotations

import json
import tempfile
from math import prod
from pathlib import Path

import numpy as np

from adabm_basicsr import OnnxNetwork
from adabm_basicsr.deployment.runtimes import openvino_core

SIZE = 64
INTEGER_KERNELS = {"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm", "MatMulIntegerToFloat"}
CONVOLUTIONS = {"Conv", "FusedConv", "QLinearConv", "ConvInteger", "Convolution"}
PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "FullyConnected", *INTEGER_KERNELS}


def integer_share(path: Path, runtime: str, level: int = 1) -> float:
    """Of an exported file at one image level, in 0..1."""
    network = OnnxNetwork(path, runtime)
    model, shape = network.graph_at(level), [1, network.in_channels, SIZE, SIZE]
    layers = (_of_openvino if runtime == "openvino" else _of_onnxruntime)(model.SerializeToString(), shape)
    return sum(macs for macs, integer in layers if integer) / sum(macs for macs, _ in layers)


def _macs(kind: str, first: list[int], second: list[int], output: list[int]) -> int:
    return prod(output) * (prod(second[1:]) if kind in CONVOLUTIONS else first[-1])


def _of_openvino(model: bytes, shape: list[int]) -> list[tuple[int, bool]]:
    core = openvino_core()
    graph = core.read_model(model)
    graph.reshape(shape)
    layers = []
    for op in core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model().get_ops():
        told = {key: str(getattr(value, "value", value)) for key, value in op.get_rt_info().items()}
        kind = told.get("layerType")
        if kind in CONVOLUTIONS | PRODUCTS:
            first, second = (list(value.get_partial_shape().to_shape()) for value in op.inputs()[:2])
            macs = _macs(kind, first, second, list(op.get_output_partial_shape(0).to_shape()))
            layers.append((macs, told.get("runtimePrecision") in ("u8", "i8")))
    return layers


def _of_onnxruntime(model: bytes, shape: list[int]) -> list[tuple[int, bool]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(model, options, disabled_optimizers=["WeightBiasQuantization"])
        session.run(None, {"image": np.full(shape, 0.5, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
    layers = []
    for told in (event["args"] for event in events if event.get("name", "").endswith("kernel_time")):
        kind = told["op_name"]
        if kind in CONVOLUTIONS | PRODUCTS:
            inputs, outputs = (
                [next(iter(entry.values())) for entry in told[f"{io}_type_shape"]] for io in ("input", "output")
            )
            matrices = [entry for entry in inputs if len(entry) > 1]  # integer kernels take scales and zero points too
            layers.append((_macs(kind, *matrices[:2], outputs[0]), kind in INTEGER_KERNELS))
    return layers
