"""Graphs round where the simulation does: hardly a value comes to another grid point."""

from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch.nn.functional as F
from agreement import check_agreement, quantized, smooth
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from adabm_basicsr import calibrate, quantize, save_onnx
from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.exact import add_up_integers, keep_order, round_first
from adabm_basicsr.deployment.runtimes import RUNTIMES

CHANNELS, OUTPUTS, SIZE = 6, 8, 5
SR = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "upscale": 4}
NETWORKS = {
    "MSRResNet": {"type": "MSRResNet", **SR, "num_block": 3},
    "SRVGGNetCompact": {"type": "SRVGGNetCompact", **SR, "num_conv": 4},
    "RRDBNet": {
        "type": "RRDBNet",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": 16,
        "num_grow_ch": 8,
        "num_block": 1,
    },
}
# dB in ONNX Runtime; 100 is as float32 rounds
TYPICAL = {"MSRResNet": 100, "SRVGGNetCompact": 100, "RRDBNet": 65}
LAYERS = {
    "convolution": ("Conv", (OUTPUTS, CHANNELS, 3, 3), {"pads": [1] * 4}),
    "groups": ("Conv", (OUTPUTS, CHANNELS // 2, 3, 3), {"pads": [1] * 4, "group": 2}),
    "transposed": ("ConvTranspose", (CHANNELS, OUTPUTS, 2, 2), {"strides": [2, 2]}),
    "transposed groups": (
        "ConvTranspose",
        (CHANNELS, OUTPUTS // 2, 2, 2),
        {"strides": [2, 2], "group": 2},
    ),
    "linear": ("MatMul", (SIZE, OUTPUTS), {}),
}


def model_of(nodes, constants, shape):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    ]
    graph = helper.make_graph(nodes, "graph", [value], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def kinds(model):
    return [node.op_type for node in model.graph.node]


def quantized_layer(kind, bias):
    """A layer as it is exported, on a random input; with the weight's integers and scales."""
    operator, shape, attributes = LAYERS[kind]
    rng = np.random.default_rng(1)
    integers = rng.integers(-8, 8, shape).astype(np.int8)
    axis = 0 if operator == "Conv" else 1
    constants = {"scale": np.float32(0.0371), "zero": np.uint8(3), "integers": integers}
    constants["scales"] = rng.uniform(0.01, 0.1, shape[axis]).astype(np.float32)
    constants |= {"bias": rng.standard_normal(OUTPUTS).astype(np.float32)} if bias else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["integers", "scales"], ["weight"], axis=axis),
        helper.make_node(
            operator, ["dq", "weight", *(["bias"] if bias else [])], ["y"], **attributes
        ),
    ]
    x = rng.uniform(0, 0.4, (1, CHANNELS, SIZE, SIZE)).astype(np.float32)
    return model_of(nodes, constants, x.shape), x


@pytest.mark.parametrize(
    ("kind", "bias"), [*product(LAYERS, [False]), *product(list(LAYERS)[:-1], [True])]
)
def test_layers_add_up_whole_numbers(kind, bias):  # the bias of a linear layer is a node of its own
    model, x = quantized_layer(kind, bias)
    before = run(model, x)
    edited = EditedGraph(model)
    add_up_integers(edited)
    edited.sort()
    np.testing.assert_allclose(run(model, x), before, atol=1e-5)
    layer = next(node for node in model.graph.node if node.op_type == LAYERS[kind][0])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert len(layer.input) == 2
    weight = constants[layer.input[1]]
    assert np.array_equal(weight, np.rint(weight))
    dequantize = edited.maker(layer.input[0])
    assert edited.scales_of(dequantize) == 1
    assert kinds(model)[-2:] == (["Mul", "Add"] if bias else [LAYERS[kind][0], "Mul"])


def test_what_no_quantization_precedes_stays():
    model, _ = quantized_layer("convolution", True)
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.input[0] = "x"
    edited = EditedGraph(model)
    add_up_integers(edited)
    assert next(node for node in model.graph.node if node.op_type == "Conv").input[2] == "bias"


@pytest.mark.parametrize("zero", [np.uint8(100), np.int8(0), np.uint8(0)])
def test_values_are_rounded_before_a_zero_point_is_added(zero):
    rng = np.random.default_rng(1)
    scales = rng.uniform(0.1, 0.2, CHANNELS).astype(np.float32)
    ends = {"low": -7 * scales.reshape(-1, 1, 1), "high": 8 * scales.reshape(-1, 1, 1)}
    constants = {
        "scales": scales,
        "zeros": zero.repeat(CHANNELS),
        "scale": np.float32(0.5),
        "zero": zero,
        **ends,
    }
    nodes = [
        helper.make_node("Max", ["x", "low"], ["a"]),
        helper.make_node("Min", ["a", "high"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "scales", "zeros"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    x = rng.standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)
    model = model_of(nodes, constants, x.shape)
    before = run(model, x)
    edited = EditedGraph(model)
    round_first(edited)
    edited.sort()
    np.testing.assert_array_equal(run(model, x), before)
    rounds = zero.dtype == np.int8 or zero > 0  # nothing is added otherwise
    assert ("Round" in kinds(model)) == rounds


@pytest.mark.parametrize(
    ("first", "second", "parted"),
    [("Mul", "Add", True), ("Sub", "Div", True), ("Relu", "Mul", False)],
)
def test_constants_are_kept_apart_that_would_merge(first, second, parted):
    nodes = [
        helper.make_node(first, ["x"] if first == "Relu" else ["x", "a"], ["m"]),
        helper.make_node(second, ["m", "b"], ["y"]),
    ]
    model = model_of(nodes, {"a": np.float32(0.3), "b": np.float32(0.7)}, [1, 4])
    x = np.linspace(-3, 3, 4, dtype=np.float32).reshape(1, 4)
    before = run(model, x)
    edited = EditedGraph(model)
    keep_order(edited)
    edited.sort()
    assert ("Clip" in kinds(model)) == parted
    np.testing.assert_array_equal(run(model, x), before)


def test_sizes_are_no_matter_of_rounding():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Mul", ["shape", "two"], ["double"]),
        helper.make_node("Sub", ["double", "two"], ["less"]),
        helper.make_node("Expand", ["x", "less"], ["y"]),
    ]
    model = model_of(nodes, {"two": np.int64(2)}, [2, 2])
    edited = EditedGraph(model)
    keep_order(edited)
    edited.sort()
    assert kinds(model) == [node.op_type for node in nodes]


@pytest.mark.parametrize(("follows", "parted"), [("Add", False), ("Mul", True)])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_layers_keep_their_bias_but_not_what_the_network_multiplies_them_by(kind, follows, parted):
    model, x = quantized_layer(kind, False)
    model.graph.node[-1].output[0] = "sums"
    model.graph.node.append(helper.make_node(follows, ["sums", "factor"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.2), "factor"))
    before = run(model, x)
    edited = EditedGraph(model)
    keep_order(edited)
    edited.sort()
    # The bias of a convolution is an input of it, so what is added is the network's own.
    assert ("Clip" in kinds(model)) == (parted or kind == "convolution")
    np.testing.assert_array_equal(run(model, x), before)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        ("MSRResNet", 4),
        ("MSRResNet", 6),
        ("SRVGGNetCompact", 4),
        ("SRVGGNetCompact", 6),
        ("RRDBNet", 4),
        pytest.param("RRDBNet", 6, marks=pytest.mark.slow),
    ],
)
def test_both_runtimes_bring_values_to_their_grid_points(kind, bits, tmp_path):
    net = quantized(NETWORKS[kind], w_bits=bits, a_bits=bits)
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx", runtimes=["openvino"])
    check_agreement(net, tmp_path / "net.onnx", typical=TYPICAL[kind], runtimes=["onnxruntime"])


class Averaged(nn.Module):
    """A normalisation that no layer takes in, and an average that counts zeros at the border."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.bias, 1.0)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        y = F.avg_pool2d(self.norm(x), 3, 1, 1)
        return x + self.last(F.relu(self.first(y)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_averages_count_zeros_at_the_border(runtime, tmp_path):
    net = quantize(Averaged(), smooth(1), fully_quantized=True)
    calibrate(net, [smooth(8)])
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx", runtimes=[runtime])


class WithoutBiases(nn.Module):
    """Sums take what its layers make, and so do others."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, bias=False)
        self.body = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.last = nn.Conv2d(8, 3, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.first(x)
        y = self.up(y + self.body(F.relu(y)))
        return self.last(y + self.body(F.relu(y)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sums_of_layers_without_biases(runtime, tmp_path):
    net = quantize(WithoutBiases(), smooth(1), w_bits=8, a_bits=8, fully_quantized=True)
    calibrate(net, [smooth(8)])
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx", runtimes=[runtime])
