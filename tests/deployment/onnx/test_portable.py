"""Files for programs of others: old operators, one input and one output, and the same pixels."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from agreement import THREADS, check, in_onnxruntime, in_openvino, quantized, smooth
from conftest import TINY_EDSR
from engine_networks import EACH_NETWORK, MIRRORING, NETWORKS
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, load_network, quantize
from adabm_basicsr.deployment.engines import save_for
from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.engine_files import save_integers
from adabm_basicsr.deployment.onnx.export import to_onnx
from adabm_basicsr.deployment.onnx.integers import (
    Convolutions,
    convolutions,
    store_whole_biases,
)
from adabm_basicsr.deployment.runtimes import RUNTIMES

PORTABLE = {"engine": "portable", "recipe": "fast", "w_bits": 7, "a_bits": 8}


@pytest.fixture(scope="module", params=EACH_NETWORK)
def saved(request, tmp_path_factory):
    """A network, its file, and how its convolutions run."""
    net = quantized(NETWORKS[request.param], **PORTABLE)
    path = tmp_path_factory.mktemp("portable") / "net.onnx"
    return net, path, save_integers(net, path)


def test_the_file_itself_gives_the_pixels_of_the_simulation(saved):
    net, path, _ = saved
    check(net, in_onnxruntime(path))
    check(net, in_openvino(path))


def test_onnx_runtime_computes_the_same_to_the_bit(tmp_path):
    """Biases are whole numbers in the simulation too; images have no mean that is taken off."""
    net = quantized(NETWORKS["SRVGGNetCompact"], **PORTABLE)
    save_integers(net, tmp_path / "net.onnx")
    image = smooth(1)
    output = torch.from_numpy(in_onnxruntime(tmp_path / "net.onnx")(image.numpy()))
    with torch.no_grad():
        torch.testing.assert_close(output, net(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_networks_are_loaded_from_it(runtime, saved):
    net, path, _ = saved
    network = load_network(path, runtime=runtime, threads=THREADS)
    check(net, lambda image: network(torch.from_numpy(image)).numpy())


def test_it_is_a_graph_of_old_operators_and_types(saved):
    model = onnx.load(saved[1])
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.INT8 in kinds
    assert not kinds & {TensorProto.INT4, TensorProto.UINT4}


def test_it_passes_the_checks_of_vs_mlrt(saved):
    graph = onnx.load(saved[1]).graph
    assert len(graph.input) == len(graph.output) == 1
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        assert kind.elem_type == TensorProto.FLOAT
        assert len(kind.shape.dim) == 4
        assert kind.shape.dim[0].dim_value == 1
        assert kind.shape.dim[1].dim_value == 3


def test_its_output_has_a_size_once_the_input_has_one(saved, tmp_path):
    """As vs-mlrt sets the size of tiles and asks ONNX Runtime for that of the output."""
    net, path, _ = saved
    fixed = with_input_size(onnx.load(path), 48)
    onnx.save(fixed, tmp_path / "fixed.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "fixed.onnx", providers=["CPUExecutionProvider"]
    )
    scale = net(torch.zeros(1, 3, 16, 16)).shape[3] // 16
    assert session.get_outputs()[0].shape == [1, 3, 48 * scale, 48 * scale]


@pytest.mark.parametrize("side", [16, 64, 256, 512])
def test_shape_inference_finds_the_scale(side, saved):
    """As chaiNNer does, in strict mode, at the first of these sizes that gives one."""
    net, path, _ = saved
    inferred = onnx.shape_inference.infer_shapes(
        with_input_size(onnx.load(path), side), check_type=True, strict_mode=True, data_prop=True
    )
    sizes = [size.dim_value for size in inferred.graph.output[0].type.tensor_type.shape.dim]
    scale = net(torch.zeros(1, 3, 16, 16)).shape[3] // 16
    assert sizes == [1, 3, side * scale, side * scale]


def with_input_size(model, side):
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    sizes[2].dim_value = side
    sizes[3].dim_value = side
    for size in model.graph.output[0].type.tensor_type.shape.dim[2:]:
        size.Clear()
    return model


def test_pairs_of_products_fit_into_16_bits(saved):
    edited = EditedGraph(onnx.load(saved[1]))
    weights = 0
    for node in edited.of_type("DequantizeLinear"):
        if edited.is_constant(node.input[0]):
            integers = edited.constant_of(node, 0).astype(int)
            assert np.abs(integers).max() * 2 * 255 < 2**15
            weights += 1
    assert weights == len(saved[0].weight_quantizers())


def test_inputs_of_convolutions_are_rounded_right_before_them(tmp_path):
    net = quantized({**TINY_EDSR, "upscale": 4}, **PORTABLE)
    found = save_integers(net, tmp_path / "net.onnx")
    assert not found.floats
    assert not found.float_outputs
    assert len(found.integers) == len(net.layers())


def test_every_convolution_is_named_once(saved):
    _, path, found = saved
    names = [*found.integers, *found.float_outputs, *found.floats]
    convs = EditedGraph(onnx.load(path)).of_type("Conv", "ConvTranspose")
    assert sorted(names) == sorted(conv.name for conv in convs)


def test_layers_in_float_are_named(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 3, 1)
    )
    net = quantize(network, torch.zeros(1, 3, 16, 16), fully_quantized=True, **PORTABLE)
    calibrate(net, [smooth(4)])
    save_integers(net, tmp_path / "net.onnx")
    found = convolutions(EditedGraph(onnx.load(tmp_path / "net.onnx")))
    assert found == Convolutions(
        ["/network/network.0/Conv", "/network/network.2/Conv"],
        [],
        ["/network/network.1/ConvTranspose"],
    )


def conv_with_bias(bias, scale, weight_scales):
    channels = len(weight_scales)
    arrays = {
        "b": np.array(bias, np.float32),
        "scale": np.float32(scale),
        "zero": np.uint8(0),
        "w": np.ones((channels, 1, 1, 1), np.int8),
        "w_scales": np.array(weight_scales, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_real"]),
        helper.make_node("DequantizeLinear", ["w", "w_scales"], ["w_real"], axis=0),
        helper.make_node("Conv", ["x_real", "w_real", "b"], ["made"], name="conv"),
        helper.make_node("QuantizeLinear", ["made", "scale", "zero"], ["made_q"]),
        helper.make_node("DequantizeLinear", ["made_q", "scale", "zero"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 2, 2])
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "conv", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=4),
    st.floats(2**-14, 1, width=32),
    st.floats(2**-20, 1, width=32),
)
def test_biases_move_by_one_unit_of_the_sums_at_most(bias, scale, weight_scale):
    edited = EditedGraph(conv_with_bias(bias, scale, [weight_scale] * len(bias)))
    store_whole_biases(edited)
    conv = edited.of_type("Conv")[0]
    unit = np.float32(scale) * np.float32(weight_scale)
    made = edited.maker(conv.input[2])
    if made is None:  # more units than 32 bits hold
        assert max(abs(value) for value in bias) / unit > 2**30
        return
    whole = edited.constant_of(made, 0)
    assert whole.dtype == np.int32
    assert whole.any()
    assert np.abs(whole * np.float64(unit) - bias).max() <= 1.01 * unit


def test_biases_of_zeros_become_one_unit():
    edited = EditedGraph(conv_with_bias([0, 0], 0.5, [0.25, 0.5]))
    store_whole_biases(edited)
    made = edited.maker(edited.of_type("Conv")[0].input[2])
    assert edited.constant_of(made, 0).tolist() == [1, 1]
    assert edited.constant_of(made, 1).tolist() == [0.125, 0.25]


def test_what_makes_floats_keeps_its_bias_in_float():
    edited = EditedGraph(conv_with_bias([1, 2], 0.5, [0.25, 0.25]))
    edited.bypass(edited.of_type("DequantizeLinear")[-1])
    edited.bypass(edited.of_type("QuantizeLinear")[-1])
    store_whole_biases(edited)
    assert edited.of_type("Conv")[0].input[2] == "b"


def test_channels_without_a_scale_keep_their_bias_in_float():
    edited = EditedGraph(conv_with_bias([1, 2], 0.5, [0.25, 0]))
    store_whole_biases(edited)
    assert edited.of_type("Conv")[0].input[2] == "b"


def test_wider_weights_are_refused(tmp_path):
    net = quantized(TINY_EDSR, **{**PORTABLE, "engine": "onnxruntime", "w_bits": 8})
    with pytest.raises(
        AdaBMError,
        match=r"--for portable: the network was quantized for engine: onnxruntime, which may have "
        r"weights of more than 7 bits; set network_g: engine: portable and w_bits: 7, and quantize",
    ):
        save_for("portable", net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_what_fits_may_be_of_another_engine(tmp_path):
    options = {**PORTABLE, "engine": "onnxruntime", "recipe": "static", "w_bits": 6}
    net = quantized({**TINY_EDSR, "num_block": 1}, **options, layers={"*": {"w_bits": 6}})
    save_for("portable", net, tmp_path / "net.onnx")
    network = load_network(tmp_path / "net.onnx", threads=THREADS)
    check(net, lambda image: network(torch.from_numpy(image)).numpy())


def test_sizes_that_the_network_does_not_take_are_mirrored(tmp_path):
    net = quantized(MIRRORING, **PORTABLE)
    assert net.size_multiple > 1
    lines = save_for("portable", net, tmp_path / "net.onnx")
    assert any(line.startswith("not for OpenCV: the graph mirrors images") for line in lines)
    network = load_network(tmp_path / "net.onnx", threads=THREADS)
    check(net, lambda image: network(torch.from_numpy(image)).numpy())


class AddsInPlace(nn.Module):
    """Goes on with what it wrote to, rather than with what writing gave."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = self.first(x)
        y.add_(x)
        total = y
        total += self.second(y)
        return y


def test_sums_in_place_are_written_as_sums(tmp_path):
    net = quantize(AddsInPlace(), smooth(1), fully_quantized=True, **PORTABLE)
    calibrate(net, [smooth(4)])
    save_integers(net, tmp_path / "net.onnx")
    network = load_network(tmp_path / "net.onnx", runtime="onnxruntime")
    check(net, lambda image: network(torch.from_numpy(image)).numpy())
    assert "Expand" not in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}


def test_graphs_that_are_traced_for_it_have_no_int4():
    net = quantized(TINY_EDSR, **{**PORTABLE, "w_bits": 3})
    model = to_onnx(net, opset=17)
    assert TensorProto.INT4 not in {tensor.data_type for tensor in model.graph.initializer}
