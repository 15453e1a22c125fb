"""Exported graphs: what they hold, and that runtimes compute what the simulation does."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from agreement import agreement, check_agreement, images, quantized, smooth
from conftest import TINY_EDSR
from onnx import TensorProto, helper, numpy_helper

from adabm_basicsr import AdaBMError, OnnxNetwork, load_network, save_onnx
from adabm_basicsr.deployment import runtimes
from adabm_basicsr.deployment.onnx.level import at_level, avoid_overflow
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY


@pytest.fixture(scope="module")
def edsr():
    return quantized(TINY_EDSR)


@pytest.fixture(scope="module")
def exported(edsr, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    save_onnx(edsr, path)
    return path


def test_runtimes_agree_at_every_level(edsr, exported):
    assert check_agreement(edsr, exported) == {0, 1, 2}


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_other_bits_agree_too(bits, tmp_path):
    net = quantized(TINY_EDSR, w_bits=bits, a_bits=bits)
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx")


def test_deep_networks_are_exported_at_eight_bits(tmp_path):
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
    check_agreement(net, tmp_path / "net.onnx", typical=38)  # without VNNI it runs in float


@pytest.mark.parametrize(
    "options", [{"w_bits": 32}, {"a_bits": 32}, {"recipe": "static"}, {"fully_quantized": False}]
)
def test_what_stays_in_float_or_fixed_agrees(options, tmp_path):
    net = quantized(TINY_EDSR, **options)
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx")


def test_the_file_is_adaptive_by_itself(edsr, exported):
    session, levels = onnxruntime.InferenceSession(exported), set()
    for image in images():
        output, level = session.run(["output", "level"], {"image": image.numpy()})
        levels.add(int(level))
        with torch.no_grad():
            assert level == int(edsr.image_mapping(image)) + 1
            assert agreement(torch.from_numpy(output), edsr(image)) >= 30
    assert levels == {0, 1, 2}


def test_a_batch_is_its_images_at_their_own_levels(exported):
    network, batch = OnnxNetwork(exported, "onnxruntime"), torch.cat(images())
    for output, image in zip(network(batch), batch):
        torch.testing.assert_close(output, network(image[None])[0])


def test_images_below_the_multiple_are_mirrored_to_and_fro(tmp_path):
    net = quantized(TINY_EDSR, size_multiple=8)
    save_onnx(net, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx"
    )  # as other engines run it, with nothing around it
    for height, width in [(1, 2), (3, 4), (5, 9), (2, 17)]:
        image = images()[1][..., :height, :width]
        output = torch.from_numpy(session.run(["output"], {"image": image.numpy()})[0])
        with torch.no_grad():
            assert output.shape == net(image).shape and agreement(output, net(image)) >= 30


def test_images_of_another_kind_or_shape_are_told(exported):
    network, image = OnnxNetwork(exported, "onnxruntime"), images()[0]
    for bad in (image[0], image[:, :1], image.numpy(), (255 * image).to(torch.uint8)):
        with pytest.raises(
            AdaBMError, match=r"images: .* can't be taken; valid: a float tensor \(B, 3, H, W\)"
        ):
            network(bad)
    torch.testing.assert_close(network(image.double()), network(image))


def test_narrow_weights_are_stored_in_four_bits(edsr, exported):
    model = onnx.load(exported)
    stored = {
        t.name: t for t in model.graph.initializer if t.name.endswith("weight_quantizer.integers")
    }
    for name, quantizer in edsr.weight_quantizers().items():
        tensor = stored[f"network.{name}.weight_quantizer.integers"]
        assert tensor.data_type == (TensorProto.INT4 if quantizer.bits <= 4 else TensorProto.INT8)
        levels = quantizer.grid_indices(edsr.network.get_submodule(name).weight).int() - 2 ** (
            quantizer.bits - 1
        )
        assert np.array_equal(numpy_helper.to_array(tensor).astype(int), levels.numpy())


def test_symmetric_levels_are_where_they_were(edsr, tmp_path):
    net = quantized(TINY_EDSR, fully_quantized=False)  # 8-bit layers alone lose by it
    save_onnx(net, tmp_path / "net.onnx", symmetric=True)
    model = onnx.load(tmp_path / "net.onnx")
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    points = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name in zeros]
    assert points and all(point.dtype == np.int8 and not point.any() for point in points)
    check_agreement(net, tmp_path / "net.onnx")
    save_onnx(edsr, tmp_path / "net.onnx", symmetric=True)
    check_agreement(edsr, tmp_path / "net.onnx", least=25, typical=25)


def test_a_file_of_one_level_has_no_choice_in_it(edsr, exported, tmp_path):
    save_onnx(edsr, tmp_path / "level.onnx", level=2)
    model, image = onnx.load(tmp_path / "level.onnx"), images()[-1]
    assert [output.name for output in model.graph.output] == ["output"]
    assert not any(tensor.data_type == TensorProto.INT4 for tensor in model.graph.initializer)
    output = onnxruntime.InferenceSession(tmp_path / "level.onnx").run(
        None, {"image": image.numpy()}
    )[0]
    with torch.no_grad():
        assert agreement(torch.from_numpy(output), edsr(image)) >= 30
    with pytest.raises(
        AdaBMError, match=r"level.onnx is for one image level alone; export it without --level"
    ):
        OnnxNetwork(tmp_path / "level.onnx")


@pytest.mark.parametrize(("bits", "kept"), [(7, True), (8, False)])
def test_products_that_would_overflow_run_in_float(bits, kept):
    net = quantized(TINY_EDSR, w_bits=bits, a_bits=bits, fully_quantized=False, recipe="static")
    from adabm_basicsr.deployment.onnx.export import to_onnx

    before = at_level(to_onnx(net), 1)
    after = avoid_overflow(at_level(to_onnx(net), 1))
    count = [
        sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
        for model in (before, after)
    ]
    assert (count[0] == count[1]) is kept
    x = {"image": smooth(1).numpy()}
    first, second = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, x)[0] for m in (before, after)
    )
    assert agreement(torch.from_numpy(second), torch.from_numpy(first)) >= 30


def test_the_file_describes_its_network(edsr, exported):
    network = load_network(exported)
    assert (
        network.description["network"] == TINY_EDSR
        and network.description["options"]["a_bits"] == 4
    )
    assert network.in_channels == 3 and network.size_multiple == 1


def test_published_quantizers_are_refused(tmp_path):
    with pytest.raises(
        AdaBMError, match="recipe 'paper' quantizes as published, without an integer zero point"
    ):
        save_onnx(quantized(TINY_EDSR, recipe="paper"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def rewritten(path, target, description):
    model = onnx.load(path)
    del model.metadata_props[:]
    if description is not None:
        onnx.helper.set_model_props(model, {DESCRIPTION_KEY: description})
    onnx.save(model, target)
    return target


def damaged(path, target, keep):
    content = bytearray(path.read_bytes())
    target.write_bytes(content[:keep] if keep else b"no protobuf at all " * 40)
    return target


def test_bad_files_are_told(exported, tmp_path, monkeypatch):
    bad = tmp_path / "bad.onnx"
    for make, told in {
        lambda: tmp_path / "gone.onnx": "gone.onnx does not exist",
        lambda: damaged(exported, bad, 2000): r"cannot be read \(truncated or corrupt\)",
        lambda: damaged(exported, bad, 0): r"cannot be read \(truncated or corrupt\)",
        lambda: rewritten(exported, bad, None): "was not written by adabm-basicsr",
        lambda: rewritten(exported, bad, "{"): r"cannot be read \(truncated or corrupt\)",
        lambda: rewritten(
            exported, bad, json.dumps({"format": 99})
        ): "has format 99; this version reads 1",
    }.items():
        with pytest.raises(AdaBMError, match=told):
            OnnxNetwork(make())


def test_unknown_or_missing_runtimes_are_told(exported, monkeypatch):
    with pytest.raises(
        AdaBMError, match=r"runtime: 'openvion' is unknown; did you mean 'openvino'\?"
    ):
        OnnxNetwork(exported, "openvion")
    original = runtimes.importlib.import_module

    def without(name):
        if name == "onnxruntime":
            raise ImportError(name)
        return original(name)

    monkeypatch.setattr(runtimes.importlib, "import_module", without)
    with pytest.raises(AdaBMError, match=r"onnxruntime is not installed: pip install onnxruntime"):
        OnnxNetwork(exported, "onnxruntime")(smooth(1))


FREED_ELSEWHERE = """
import os, signal, sys, threading
import torch
from adabm_basicsr import OnnxNetwork

networks = [OnnxNetwork(sys.argv[1])]
networks[0](torch.rand(1, 3, 16, 16))
thread = threading.Thread(target=networks.clear)
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_reach_a_process_whose_network_another_thread_freed(exported):
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FREED_ELSEWHERE, exported], capture_output=True
    )
    assert (run.returncode, run.stdout) == (0, b"handled\n"), run.stderr


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_image_that_a_graph_cannot_take_is_told_in_one_line(runtime):
    shapes = {"image": [1, 3, "height", "width"], "output": [4, "rest"]}
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [4, -1])
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["output"])]
    graph = helper.make_graph(nodes, "fixed", tensors[:1], tensors[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    compiled = runtimes.RUNTIMES[runtime](
        model.SerializeToString(), 2
    )  # on one, OpenVINO 2026.4 hides errors
    assert compiled.run(np.zeros((1, 3, 2, 2), np.float32)).shape == (4, 3)
    with pytest.raises(
        AdaBMError,
        match=r"(OpenVINO|ONNX Runtime) can't run the graph on \(1, 3, 2, 3\): .*[Rr]eshape",
    ):
        compiled.run(np.zeros((1, 3, 2, 3), np.float32))
