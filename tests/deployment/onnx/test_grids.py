"""Scales and zero points have no axes where one serves a whole tensor, in every graph we write.

OpenVINO 2024.6 refuses scales of shape ``(1,)``, and ONNX Runtime runs fewer layers as integers
with them.
"""

import onnx
import pytest
from agreement import quantized
from conftest import TINY_EDSR

from adabm_basicsr import OnnxNetwork, save_onnx
from adabm_basicsr.deployment.engines import EXPORTS, save_for
from adabm_basicsr.deployment.load import ONNX_SUFFIX
from adabm_basicsr.deployment.runtimes import RUNTIMES
from adabm_basicsr.quantization.engines import ENGINES

ENGINES_OF_GRAPHS = [name for name, export in EXPORTS.items() if export.suffix == ONNX_SUFFIX]
NETWORK = {**TINY_EDSR, "upscale": 4}  # with shuffles


def check(model):
    """Each scale has no axis, or is one for each of several channels."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in inferred.graph.value_info:
        sizes = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(size.dim_value for size in sizes)
    grids = 0
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for name in node.input[1:]:
            shape = shapes[name]  # 0 where it isn't known
            assert shape == () or (len(shape) == 1 and shape[0] != 1), (node.name, name, shape)
            grids += 1
    assert grids > 20


@pytest.fixture(scope="module")
def net():
    return quantized(NETWORK, w_bits=8, a_bits=8)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("level", [None, 1])
def test_graphs_of_our_own(symmetric, level, net, tmp_path):
    save_onnx(net, tmp_path / "net.onnx", symmetric, level)
    check(onnx.load(tmp_path / "net.onnx"))


@pytest.mark.parametrize("engine", ENGINES_OF_GRAPHS)
def test_graphs_for_engines(engine, tmp_path):
    bits = {"w_bits": ENGINES[engine].max_w_bits, "a_bits": 8}
    save_for(
        engine, quantized(NETWORK, engine=engine, recipe="fast", **bits), tmp_path / "net.onnx"
    )
    check(onnx.load(tmp_path / "net.onnx"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_graphs_as_runtimes_are_given_them(runtime, net, tmp_path):
    save_onnx(net, tmp_path / "net.onnx")
    check(OnnxNetwork(tmp_path / "net.onnx", runtime).graph_at(1))
