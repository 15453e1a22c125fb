"""Files for TensorRT keep to its rules, and give the same pixels in ONNX Runtime."""

import math

import numpy as np
import onnx
import pytest
import torch
from agreement import THREADS, in_onnxruntime, quantized, smooth
from engine_networks import EACH_NETWORK, NETWORKS

from adabm_basicsr import load_network
from adabm_basicsr.deployment.engines import save_for
from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.tensorrt import broken_rules, half_path
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

pytestmark = pytest.mark.runtimes
FOR_TENSORRT = {"engine": "tensorrt", "recipe": "fast", "w_bits": 8, "a_bits": 8}


@pytest.fixture(scope="module", params=EACH_NETWORK)
def saved(request, tmp_path_factory):
    net = quantized(NETWORKS[request.param], **FOR_TENSORRT)
    path = tmp_path_factory.mktemp("tensorrt") / "net.onnx"
    save_for("tensorrt", net, path)
    return net, path


def run(path, image):
    return torch.from_numpy(in_onnxruntime(path)(image.numpy()))


@pytest.mark.parametrize("size", [(24, 26), (17, 33), (1, 1)])
def test_both_files_give_the_pixels_of_the_simulation(size, saved):
    net, path = saved
    image = smooth(1, net.in_channels, size)
    with torch.no_grad():
        expected = net(image)
    # A value at another grid point counts for much in an image of one pixel.
    assert pixel_psnr(run(path, image), expected) >= 45
    assert pixel_psnr(load_network(path, threads=THREADS)(image), expected) >= 45
    # Floats of 16 bits bring some values to the next integer.
    assert pixel_psnr(run(half_path(path), image), expected) >= 45


def test_the_rules_are_kept(saved):
    _, path = saved
    assert broken_rules(onnx.load(path)) == []


def test_sums_take_one_of_their_operands_as_integers(saved):
    _, path = saved
    edited = EditedGraph(onnx.load(path))
    kinds = []
    for node in edited.of_type("Add"):
        makers = [edited.maker(name) for name in node.input]
        if all(maker is not None for maker in makers):
            kinds.append(sorted(maker.op_type for maker in makers))
    assert ["Conv", "DequantizeLinear"] in kinds or ["DepthToSpace", "DequantizeLinear"] in kinds
    assert ["DequantizeLinear", "DequantizeLinear"] not in kinds


def test_the_copy_has_floats_of_16_bits(saved):
    _, path = saved
    sizes = {}
    for tensor in onnx.load(half_path(path)).graph.initializer:
        sizes.setdefault(tensor.data_type, []).append(math.prod(tensor.dims))
    assert max(sizes[onnx.TensorProto.FLOAT16]) >= 16
    # Factors of enlargements keep 32.
    assert max(sizes.get(onnx.TensorProto.FLOAT, [0])) <= 4


def changed(path, change):
    edited = EditedGraph(onnx.load(path))
    change(edited)
    model = onnx.ModelProto()
    model.graph.CopyFrom(edited.graph)
    return broken_rules(model)


def test_broken_rules_are_found(saved):
    _, path = saved

    def give_zero_point(edited):
        edited.give_constant(edited.of_type("QuantizeLinear")[1], 2, np.int8(3))

    def give_scales(edited):
        edited.give_constant(edited.of_type("QuantizeLinear")[1], 1, np.ones(16, np.float32))

    def multiply(edited):
        for quantize in edited.of_type("QuantizeLinear"):
            maker = edited.maker(quantize.input[0])
            if maker is not None:
                factor = edited.add_constant(np.float32(2))
                maker_of_image = edited.of_type("Conv")[0]
                quantize.input[0] = maker_of_image.output[0]
                edited.insert("Mul", [factor], quantize, "doubled")
                return

    def add_up_integers(edited):
        total = edited.of_type("Add")[0]
        integers = edited.of_type("DequantizeLinear")
        rounded = next(node for node in integers if not edited.is_constant(node.input[0]))
        for place in range(2):
            total.input[place] = rounded.output[0]

    assert "has a zero point" in changed(path, give_zero_point)[0]
    assert "has a scale for each channel of activations" in changed(path, give_scales)[0]
    assert "doubled stands between a convolution and" in changed(path, multiply)[0]
    assert "adds up integers alone" in changed(path, add_up_integers)[0]
