"""Exported graphs in every runtime compute what the simulation does, each image at its class."""

import sys

import numpy as np
import onnx
import pytest
import torch
from agreement import (
    THREADS,
    agreement,
    check_agreement,
    images,
    in_onnxruntime,
    quantized,
    smooth,
)
from conftest import TINY_EDSR
from onnx import helper, numpy_helper
from small_networks import DeadAttention

from adabm_basicsr import AdaBMError, OnnxNetwork, calibrate, load_network, quantize, save_onnx
from adabm_basicsr.deployment.onnx.seal import sealed
from adabm_basicsr.deployment.runtimes import RUNTIMES

pytestmark = pytest.mark.runtimes


def test_runtimes_agree_at_every_class(edsr, exported):
    assert check_agreement(edsr, exported) == {0, 1, 2}


@pytest.mark.parametrize("recipe", ["fast", pytest.param("static", marks=pytest.mark.slow)])
def test_images_in_full_precision_agree(recipe, tmp_path):
    net = quantized(TINY_EDSR, recipe=recipe, full_precision_images=0.25)
    save_onnx(net, tmp_path / "net.onnx")
    levels = check_agreement(net, tmp_path / "net.onnx")
    assert 3 in levels
    assert len(levels) > 1
    # By itself, the graph makes the same image.
    run = in_onnxruntime(tmp_path / "net.onnx")
    for image in images():
        with torch.no_grad():
            expected = net(image)
        output = run(image.numpy())
        assert agreement(torch.from_numpy(output), expected) > 30
    graph = OnnxNetwork(tmp_path / "net.onnx").graph_at(3)
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "Where"}


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_other_bits_agree_too(bits, tmp_path):
    net = quantized(TINY_EDSR, w_bits=bits, a_bits=bits)
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx")


def test_layers_that_are_always_zero_agree(tmp_path):
    torch.manual_seed(0)
    net = quantize(DeadAttention(), smooth(1), w_bits=8, a_bits=8, fully_quantized=True)
    calibrate(net, [smooth(8)])
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "scale", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_the_smallest_images_agree(scale, tmp_path):
    net = quantized({**TINY_EDSR, "upscale": scale}, w_bits=8, a_bits=8)
    save_onnx(net, tmp_path / "net.onnx")
    networks = {}
    for runtime in RUNTIMES:
        networks[runtime] = OnnxNetwork(tmp_path / "net.onnx", runtime, threads=THREADS)
    whole = smooth(1, size=(9, 9))
    for height in range(1, 10):
        for width in range(1, 10):
            image = whole[..., :height, :width]
            with torch.no_grad():
                expected = net(image)
            for runtime, network in networks.items():
                found = agreement(network(image), expected)
                assert found > 38, (runtime, height, width, found)


def test_deep_networks_agree_at_eight_bits(tmp_path):
    deep = {
        "type": "MSRResNet",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": 16,
        "num_block": 16,
        "upscale": 4,
    }
    net = quantized(deep, w_bits=8, a_bits=8)
    save_onnx(net, tmp_path / "net.onnx")  # refused where the traced network's values overflow
    # Without VNNI it runs in float.
    check_agreement(net, tmp_path / "net.onnx", typical=38, most=38)


@pytest.mark.parametrize(
    "options", [{"w_bits": 32}, {"a_bits": 32}, {"recipe": "static"}, {"fully_quantized": False}]
)
def test_what_stays_in_float_or_fixed_agrees(options, tmp_path):
    net = quantized(TINY_EDSR, **options)
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx")


@pytest.mark.parametrize("symmetric", [False, True])
def test_files_of_one_class_run_at_it(symmetric, edsr, exported, tmp_path):
    save_onnx(edsr, tmp_path / "all.onnx", symmetric)
    save_onnx(edsr, tmp_path / "one.onnx", symmetric, level=2)
    for runtime in RUNTIMES:
        network = OnnxNetwork(tmp_path / "one.onnx", runtime, threads=THREADS)
        expected = OnnxNetwork(tmp_path / "all.onnx", runtime, threads=THREADS)
        for image in images():
            assert network.level(image) == 2
            assert agreement(network(image), expected.at_level(image, 2)) >= 60
    with pytest.raises(AdaBMError, match=r"level: 1: .*one.onnx is for class 2 alone"):
        network.at_level(images()[0], 1)


def test_a_batch_is_its_images_at_their_own_classes(exported):
    network = OnnxNetwork(exported, "onnxruntime")
    batch = torch.cat(images())
    for output, image in zip(network(batch), batch, strict=True):
        torch.testing.assert_close(output, network(image[None])[0])


def test_images_of_another_kind_or_shape_are_rejected(exported):
    network = OnnxNetwork(exported, "onnxruntime")
    image = images()[0]
    for bad in (image[0], image[:, :1], image.numpy(), (255 * image).to(torch.uint8)):
        with pytest.raises(
            AdaBMError, match=r"images: .* can't be taken; valid: a float tensor \(B, 3, H, W\)"
        ):
            network(bad)
    torch.testing.assert_close(network(image.double()), network(image))


def test_the_file_describes_its_network(exported):
    network = load_network(exported)
    assert network.description["network"] == TINY_EDSR
    assert network.description["options"]["a_bits"] == 4
    assert network.in_channels == 3
    assert network.size_multiple == 1


def write_changed(exported, target, change):
    """Write a copy with a changed graph and a right checksum."""
    model = onnx.load(exported)
    del model.metadata_props[1:]
    change(model.graph)
    target.write_bytes(sealed(model.SerializeToString()))


def choose_five(graph):
    rename(graph, "level", "real_level")
    five = numpy_helper.from_array(np.array(5), "five")
    graph.initializer.append(five)
    graph.node.append(helper.make_node("Add", ["real_level", "five"], ["level"]))


def crop(graph):
    """Leave out all rows of the output."""
    rename(graph, "output", "whole")
    for name, value in (("start", 10**6), ("end", 10**6), ("axis", 2)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    node = helper.make_node("Slice", ["whole", "start", "end", "axis"], ["output"])
    graph.node.append(node)


def rename(graph, old, new):
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def shorten_zero_points(graph):
    """One zero point where channels have a scale each."""
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.uint8), "two"))
            node.input[2] = "two"
            return


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (choose_five, r"is damaged: its graph chooses \d, which is no class"),
        (crop, r"is damaged: its graph makes \(1, 3, 0, 52\) of an image \(1, 3, 24, 26\)"),
        (shorten_zero_points, r"is damaged: .*"),
    ],
)
def test_changed_graphs_with_a_right_checksum_are_rejected(
    change, message, runtime, exported, tmp_path
):
    write_changed(exported, tmp_path / "bad.onnx", change)
    with pytest.raises(AdaBMError, match=message):
        OnnxNetwork(tmp_path / "bad.onnx", runtime)(images()[1])


def test_unknown_runtimes_are_rejected(exported):
    with pytest.raises(
        AdaBMError, match=r"runtime: 'openvion' is unknown; did you mean 'openvino'\?"
    ):
        OnnxNetwork(exported, "openvion")


def test_a_runtime_that_is_not_installed_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    network = OnnxNetwork(exported, "onnxruntime")
    with pytest.raises(AdaBMError, match=r"onnxruntime is not installed: pip install onnxruntime"):
        network(smooth(1))
