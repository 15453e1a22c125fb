"""Graphs of one image class are rewritten for engines to fuse, and compute what they did."""

import onnx
import pytest
import torch
import torch.nn.functional as F
from agreement import THREADS, agreement, quantized, smooth
from conftest import TINY_EDSR
from onnx.reference import ReferenceEvaluator
from torch import nn

from adabm_basicsr import OnnxNetwork, calibrate, quantize, save_onnx
from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.export import to_onnx
from adabm_basicsr.deployment.onnx.fusion import CONCATENATIONS_UNMOVED, FORMS, fuse
from adabm_basicsr.deployment.onnx.level import at_level
from adabm_basicsr.deployment.runtimes import RUNTIMES
from adabm_basicsr.quantization.engines import ALL_SUMS, CONCATENATIONS, RESIDUAL

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


# These are for networks of another arithmetic, see test_portable.py, test_tensorrt.py and
# test_openvino_uint8.py.
OTHER_FORMS = (ALL_SUMS, RESIDUAL, CONCATENATIONS, CONCATENATIONS_UNMOVED)
OWN_FORMS = [form for form in FORMS if form not in OTHER_FORMS]


@pytest.mark.parametrize("form", OWN_FORMS)
def test_the_output_stays_what_it_was(model, form):
    fused = fuse(copy(model), form)
    onnx.checker.check_model(fused, full_check=True)
    image = smooth(1, size=(9, 12))
    before = torch.from_numpy(run(model, image))
    after = torch.from_numpy(run(fused, image))
    assert before.shape == after.shape
    # Scales of channels move to other weights: a rounding may fall the other way.
    assert agreement(after, before) >= 38


def test_quantizations_behind_a_convolution_have_one_scale(model):
    edited = EditedGraph(fuse(copy(model)))
    behind_convolution = set()
    behind_others = set()
    for node in edited.of_type("QuantizeLinear"):
        count = edited.scales_of(node).size
        if is_behind_convolution(edited, node):
            behind_convolution.add(count)
        else:
            behind_others.add(count)
    assert behind_convolution <= {1}
    assert max(behind_others) > 1  # of sums: those keep the scales of their channels


def is_behind_convolution(edited, node):
    """Whether a convolution makes what is quantized, and nothing else takes it."""
    name = node.input[0]
    while edited.only_taker(name) is not None:
        maker = edited.maker(name)
        if maker is None:
            return False
        if maker.op_type not in BETWEEN:
            return maker.op_type == "Conv"
        name = maker.input[0]
    return False


def test_nothing_is_quantized_that_is_larger_than_need_be(model):
    edited = EditedGraph(fuse(copy(model)))
    for node in edited.of_type("DepthToSpace", "Resize"):
        taker = edited.only_taker(node.output[0])
        assert taker is None or taker.op_type not in ("QuantizeLinear", "LeakyRelu")


def test_eight_bits_need_no_clips():
    fused = fuse(at_level(to_onnx(quantized(TINY_EDSR, w_bits=8, a_bits=8)), 2))
    assert not of_type(fused, "Clip")


def test_constants_are_folded_but_for_quantized_weights():
    model = at_level(to_onnx(quantized(TINY_EDSR)), 1)
    fused = fuse(copy(model))
    assert len(fused.graph.node) < len(model.graph.node) / 3
    assert len(of_type(fused, "DequantizeLinear")) == len(of_type(model, "DequantizeLinear"))
    taken = {name for node in fused.graph.node for name in node.input}
    assert {tensor.name for tensor in fused.graph.initializer} <= taken


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


# With the second, layers get eight bits by their factors.
@pytest.mark.parametrize("options", [{}, {"a_bits": 7, "ingredients": {"allocate": False}}])
def test_factors_of_the_network_stay_its_own(options, tmp_path):
    torch.manual_seed(0)
    image = smooth(1)
    net = quantize(Scaled(), image, w_bits=4, fully_quantized=True, **options)
    calibrate(net, [smooth(6)])
    save_onnx(net, tmp_path / "net.onnx")
    for runtime in RUNTIMES:
        network = OnnxNetwork(tmp_path / "net.onnx", runtime, threads=THREADS)
        with torch.no_grad():
            assert agreement(network(image), net(image)) >= 38, runtime


class Clipped(nn.Module):
    """Clips to two ends what more than a layer takes, and to one end what a layer takes."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.head(x).clamp(min=-0.2)
        for conv in self.convs:
            x = F.hardtanh(x, -0.1, 0.3)
            x = x + conv(x)
        return self.tail(x.clamp(max=0.3))


def test_clips_of_the_network_stay_its_own(tmp_path):
    torch.manual_seed(0)
    image = smooth(1)
    net = calibrate(quantize(Clipped(), image, w_bits=8, a_bits=8), [smooth(6)])
    save_onnx(net, tmp_path / "net.onnx")
    for runtime in RUNTIMES:
        network = OnnxNetwork(tmp_path / "net.onnx", runtime, threads=THREADS)
        with torch.no_grad():
            assert agreement(network(image), net(image)) >= 38, runtime
