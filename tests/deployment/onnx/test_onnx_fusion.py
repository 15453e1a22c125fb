"""Graphs of one level are rewritten for runtimes to fuse, and compute what they did."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from agreement import agreement, quantized, smooth
from conftest import TINY_EDSR
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import adabm_basicsr
from adabm_basicsr import OnnxNetwork, calibrate, save_onnx
from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.export import to_onnx
from adabm_basicsr.deployment.onnx.fusion import fuse, unshuffled_kernel
from adabm_basicsr.deployment.onnx.level import at_level
from adabm_basicsr.deployment.runtimes import RUNTIMES

BETWEEN = ("Relu", "LeakyRelu", "PRelu", "Max", "Min")
SR = {"num_in_ch": 3, "num_out_ch": 3}
NETWORKS = {
    "EDSR": {**TINY_EDSR, "upscale": 4},
    "MSRResNet": {"type": "MSRResNet", **SR, "num_feat": 8, "num_block": 2, "upscale": 4},
    "RRDBNet": {"type": "RRDBNet", **SR, "num_feat": 8, "num_grow_ch": 4, "num_block": 1},
    "SRVGGNetCompact": {
        "type": "SRVGGNetCompact",
        **SR,
        "num_feat": 8,
        "num_conv": 2,
        "upscale": 4,
    },
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return at_level(to_onnx(quantized(NETWORKS[request.param])), 1)


def copy(model):
    return onnx.ModelProto.FromString(model.SerializeToString())


def run(model, image):
    return ReferenceEvaluator(model).run(None, {"image": image.numpy()})[0]


def of_type(model, *kinds):
    return [node for node in model.graph.node if node.op_type in kinds]


@pytest.mark.parametrize("runtime", [None, *RUNTIMES])
def test_the_output_stays_what_it_was(model, runtime):
    fused, image = fuse(copy(model), runtime), smooth(1, size=(9, 12))
    onnx.checker.check_model(fused, full_check=True)
    before, after = (torch.from_numpy(run(graph, image)) for graph in (model, fused))
    assert before.shape == after.shape
    assert (
        agreement(after, before) >= 38
    )  # scales of channels move to other weights: a rounding may fall the other way


def test_quantizations_behind_a_convolution_have_one_scale(model):
    fused = fuse(copy(model))
    edited, sizes = EditedGraph(fused), {True: set(), False: set()}
    for quantize in of_type(fused, "QuantizeLinear"):
        name, taken_once = quantize.input[0], edited.only_taker(quantize.input[0]) is not None
        while (maker := edited.maker(name)) is not None and maker.op_type in BETWEEN:
            name = maker.input[0]
            taken_once = taken_once and edited.only_taker(name) is not None
        behind = maker is not None and maker.op_type == "Conv" and taken_once
        sizes[behind].add(edited.constant(quantize.input[1]).size)
    assert sizes[True] <= {1}
    assert max(sizes[False]) > 1  # of sums: those keep the scales of their channels


def test_nothing_is_quantized_that_is_larger_than_need_be(model):
    edited = EditedGraph(fuse(copy(model)))
    for node in edited.of_type("DepthToSpace", "Resize"):
        taker = edited.only_taker(node.output[0])
        assert taker is None or taker.op_type not in ("QuantizeLinear", "LeakyRelu")


def test_the_last_layer_comes_before_the_shuffle():
    model = at_level(to_onnx(quantized(NETWORKS["EDSR"])), 1)
    assert len(of_type(model, "DepthToSpace")) == 2
    fused = fuse(copy(model))
    assert of_type(fused, "DepthToSpace")[-1].output[0] == "output"
    last = EditedGraph(fused).maker(of_type(fused, "Conv")[-1].input[1])
    assert EditedGraph(fused).constant(last.input[0]).shape == (12, 4 * TINY_EDSR["num_feat"], 3, 3)


def test_layers_stay_behind_a_shuffle_where_that_takes_less_work():
    fused = fuse(at_level(to_onnx(quantized({**TINY_EDSR, "upscale": 3})), 1))
    shapes = [tuple(t.dims) for t in fused.graph.initializer if len(t.dims) == 4]
    assert (
        3,
        TINY_EDSR["num_feat"],
        3,
        3,
    ) in shapes  # 27 channels would take two passes of 16, nine times as wide


def test_eight_bits_need_no_clips():
    fused = fuse(at_level(to_onnx(quantized(TINY_EDSR, w_bits=8, a_bits=8)), 2))
    assert not of_type(fused, "Clip")


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5, 9]),
    st.integers(2, 4),
    st.integers(0, 2**32 - 1),
)
def test_a_convolution_before_a_shuffle_equals_one_behind_it(outputs, inputs, size, block, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, size, size, generator=generator)
    x = torch.randn(1, inputs * block**2, 5, 4, generator=generator)
    kernel = torch.from_numpy(unshuffled_kernel(weight.numpy(), block))
    early = F.pixel_shuffle(F.conv2d(x, kernel, padding=kernel.shape[-1] // 2), block)
    late = F.conv2d(F.pixel_shuffle(x, block), weight, padding=size // 2)
    torch.testing.assert_close(early, late, rtol=1e-4, atol=1e-4)


def graph(nodes, constants, channels=8):
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, 4, 4])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    tensors = [
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in constants.items()
    ]
    made = helper.make_graph(
        [helper.make_node(*node, **own) for node, own in nodes], "g", [image], [output], tensors
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


SHUFFLE = (("DepthToSpace", ["image"], ["large"]), {"blocksize": 2, "mode": "CRD"})


@pytest.mark.parametrize(
    ("name", "value", "moves"),
    [
        ("a number", 2.0, True),
        ("of channels", np.arange(2.0).reshape(1, 2, 1, 1), True),
        ("of channels, without a batch", np.arange(2.0).reshape(2, 1, 1), True),
        ("of columns", np.arange(8.0), False),
        ("of pixels", np.arange(64.0).reshape(1, 1, 8, 8), False),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_differs_from_pixel_to_pixel_stays_behind(name, value, moves, first):
    inputs = ["large", "value"] if first else ["value", "large"]
    model = graph([SHUFFLE, (("Sub", inputs, ["output"]), {})], {"value": value})
    image, fused = smooth(1, channels=8, size=(4, 4)), fuse(copy(model))
    assert [node.op_type for node in fused.graph.node] == (
        ["Sub", "DepthToSpace"] if moves else ["DepthToSpace", "Sub"]
    )
    np.testing.assert_array_equal(run(fused, image), run(model, image))


def test_what_is_used_twice_stays_where_it_is():
    model = graph(
        [SHUFFLE, (("Relu", ["large"], ["a"]), {}), (("Add", ["a", "large"], ["output"]), {})], {}
    )
    assert [node.op_type for node in fuse(copy(model)).graph.node] == [
        "DepthToSpace",
        "Relu",
        "Add",
    ]


def test_constants_are_folded_but_for_quantized_weights():
    model = at_level(to_onnx(quantized(TINY_EDSR)), 1)
    fused = fuse(copy(model))
    assert len(fused.graph.node) < len(model.graph.node) / 3
    assert len(of_type(fused, "DequantizeLinear")) == len(of_type(model, "DequantizeLinear"))
    taken = {name for node in fused.graph.node for name in node.input}
    assert {tensor.name for tensor in fused.graph.initializer} <= taken


def test_channels_with_zero_points_of_their_own_are_clipped_before():
    net = quantized(NETWORKS["SRVGGNetCompact"])
    own = [
        q
        for q in net.activation_quantizers().values()
        if q.channel_shift is not None and q.channel_shift.any()
    ]
    model = at_level(to_onnx(net), 1)
    assert own and len(of_type(model, "Max")) == len(of_type(model, "Min")) == len(own)
    zeros = [
        EditedGraph(model).constant(node.input[2]) for node in of_type(model, "QuantizeLinear")
    ]
    assert all(np.ptp(zero) == 0 for zero in zeros)  # one for all, which integer kernels want


class Scaled(nn.Module):
    """Features are multiplied, channel by channel, between an activation and the next layer."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)

    def forward(self, x):
        x = self.head(x)
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, 0.1) * self.scale)
        return self.tail(x)


ASKED = (
    {},
    {"a_bits": 7, "ingredients": {"allocate": False}},
)  # layers of the second get eight bits by their factors


@pytest.mark.parametrize("options", ASKED)
def test_factors_of_the_network_stay_its_own(options, tmp_path):
    torch.manual_seed(0)
    image = smooth(1)
    net = calibrate(
        adabm_basicsr.quantize(
            Scaled(), image, **{"w_bits": 4, "fully_quantized": True, **options}
        ),
        [smooth(6)],
    )
    save_onnx(net, tmp_path / "net.onnx")
    for runtime in RUNTIMES:
        network = OnnxNetwork(tmp_path / "net.onnx", runtime)
        with torch.no_grad():
            assert agreement(network(image), net(image)) >= 38, runtime


@pytest.mark.parametrize("kind", ["EDSR", "SRVGGNetCompact"])
def test_runtimes_agree_on_symmetric_graphs(kind, tmp_path):
    net = quantized(NETWORKS[kind])
    save_onnx(net, tmp_path / "net.onnx", symmetric=True)
    image = smooth(1)
    outputs = [
        OnnxNetwork(tmp_path / "net.onnx", runtime).at_level(image, 1) for runtime in RUNTIMES
    ]
    assert agreement(*outputs) >= 50  # 42 where the ends of clips are mistaken


def test_files_of_one_level_are_fused(tmp_path):
    net = quantized(NETWORKS["EDSR"])
    save_onnx(net, tmp_path / "one.onnx", level=1)
    assert of_type(onnx.load(tmp_path / "one.onnx"), "DepthToSpace")[-1].output[0] == "output"
