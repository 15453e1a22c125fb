"""Which share of a graph's MACs the runtimes execute as integers, by their own account."""

from __future__ import annotations

import json
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino

from adabm_basicsr import OnnxNetwork
from adabm_basicsr.deployment.ncnn.files import BIN_SUFFIX
from adabm_basicsr.deployment.ncnn_network import read_description
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
NCNN_CONVOLUTIONS = ("Convolution", "Deconvolution")

# MACs of a layer, and whether it runs as integers.
Layer = tuple[int, bool]


def integer_share(path: Path, runtime: str, level: int = 1) -> float:
    """Share of the MACs, 0..1, that an adaptive file executes as integers in `OnnxNetwork`.

    Args:
        path: A file that `save_onnx` wrote.
        runtime: "openvino" or "onnxruntime".
        level: Image class, 0 to 2.
    """
    return share_of(executed_layers(path, runtime, level))


def share_of(layers: list[Layer]) -> float:
    """Share of the MACs of layers, 0..1, that run as integers."""
    total = 0
    as_integers = 0
    for macs, integer in layers:
        total += macs
        if integer:
            as_integers += macs
    return as_integers / total


def executed_layers(path: Path, runtime: str, level: int = 1) -> list[Layer]:
    """The layers that `OnnxNetwork` executes of an adaptive file, on an image of `SIZE`."""
    network = OnnxNetwork(path, runtime)
    model = network.graph_at(level).SerializeToString()
    if runtime == "openvino":
        return openvino_file_layers(model, "f32")
    return onnxruntime_file_layers(model, disabled_optimizers=KEPT_OUT)


def onnxruntime_file_layers(model: bytes | Path, **settings: Any) -> list[Layer]:
    """The layers that ONNX Runtime executes of a file as it is, on an image of `SIZE`.

    ``settings`` are those of the session.
    """
    if isinstance(model, Path):
        model = model.read_bytes()
    image = onnx.load_from_string(model).graph.input[0]
    channels = image.type.tensor_type.shape.dim[1].dim_value
    feed = {image.name: np.full([1, channels, SIZE, SIZE], 0.5, np.float32)}
    return [_macs_of_profiled(layer) for layer in onnxruntime_layers(model, feed, **settings)]


def openvino_file_layers(model: bytes | Path, precision: str | None = None) -> list[Layer]:
    """The layers that OpenVINO executes of a file as it is, on an image of `SIZE`.

    ``precision`` is what floats are computed in; None leaves that to OpenVINO.
    """
    graph = openvino_core().read_model(model)
    channels = graph.input(0).get_partial_shape()[1].get_length()
    graph.reshape([1, channels, SIZE, SIZE])
    settings = {}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    return openvino_layers(openvino_core().compile_model(graph, "CPU", settings))


def ncnn_file_layers(path: Path) -> list[Layer]:
    """The layers that ncnn executes of a ``.param``, on an image of `SIZE`.

    The file says of each convolution whether it is one of integers; the sizes are ncnn's own.
    """
    import ncnn

    net = ncnn.Net()
    net.opt.lightmode = False  # all blobs are kept
    net.load_param(str(path))
    net.load_model(str(path.with_suffix(BIN_SUFFIX)))
    extractor = net.create_extractor()
    channels = read_description(path).in_channels
    extractor.input("data", ncnn.Mat(np.full([channels, SIZE, SIZE], 0.5, np.float32)))
    layers = []
    for line in path.read_text().splitlines()[2:]:
        kind, _, inputs, outputs, *words = line.split()
        if not kind.startswith(NCNN_CONVOLUTIONS):
            continue
        blobs = int(inputs) + int(outputs)
        parameters = dict(word.split("=") for word in words[blobs:])
        # Each value that a transposed one takes meets all weights, not each that it makes.
        counted = words[0] if kind.startswith("Deconvolution") else words[blobs - 1]
        _, values = extractor.extract(counted)
        macs = int(parameters["6"]) * values.w * values.h
        layers.append((macs, int(parameters.get("8", 0)) > 0))
    return layers


def openvino_layers(compiled: openvino.CompiledModel) -> list[Layer]:
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
    # The profile says nothing of the shape of weights that were reordered for a kernel.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    # All but what fits channels to kernels: it would count channels that are there to fill up.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
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


def _macs_of_profiled(layer: dict) -> Layer:
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
