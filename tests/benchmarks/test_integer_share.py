"""What the runtimes say that they execute as integers."""

import pytest
import torch
from agreement import quantized
from conftest import TINY_EDSR

from adabm_basicsr import save_onnx
from adabm_basicsr.deployment.ncnn.export import save_ncnn
from adabm_basicsr.deployment.runtimes import has_exact_int8
from adabm_basicsr.quantization.structure.macs import MacCounter

pytestmark = pytest.mark.runtimes

benchmark = pytest.importorskip("integer_share")


def test_openvino_runs_every_quantized_layer_as_integers(tmp_path):
    net = quantized(TINY_EDSR)
    save_onnx(net, tmp_path / "net.onnx")
    share = benchmark.integer_share(tmp_path / "net.onnx", "openvino")
    if has_exact_int8():
        assert share == 1
    else:
        # Layers of 8-bit weights run in float, but for the first, which takes its channels twice.
        expected = {}
        for name, macs in layer_macs(net).items():
            if net.weight_quantizers()[name].bits < 8:
                expected[name] = macs
        expected["conv_first"] = 2 * layer_macs(net)["conv_first"]
        layers = benchmark.executed_layers(tmp_path / "net.onnx", "openvino")
        assert sum(macs for macs, integer in layers if integer) == sum(expected.values())
    assert 0 <= benchmark.integer_share(tmp_path / "net.onnx", "onnxruntime") <= share


def test_ncnn_files_say_what_runs_as_integers(tmp_path):
    pytest.importorskip("ncnn")
    net = quantized(TINY_EDSR, engine="ncnn", w_bits=8, a_bits=8, fully_quantized=False)
    save_ncnn(net, tmp_path / "net.param")
    found = benchmark.ncnn_file_layers(tmp_path / "net.param")
    assert sum(macs for macs, integer in found if integer) == sum(layer_macs(net).values())
    assert 0 < benchmark.share_of(found) < 1


def test_runtimes_count_the_same_layers_of_a_file(tmp_path):
    save_onnx(quantized(TINY_EDSR, w_bits=8, a_bits=8), tmp_path / "net.onnx", level=1)
    of_openvino = benchmark.openvino_file_layers(tmp_path / "net.onnx")
    of_onnxruntime = benchmark.onnxruntime_file_layers(tmp_path / "net.onnx")
    assert sorted(macs for macs, _ in of_openvino) == sorted(macs for macs, _ in of_onnxruntime)
    assert benchmark.share_of(of_onnxruntime) < benchmark.share_of(of_openvino) == 1


def test_full_precision_runs_nothing_as_integers(tmp_path):
    save_onnx(quantized(TINY_EDSR, w_bits=32, fully_quantized=False), tmp_path / "net.onnx")
    assert benchmark.integer_share(tmp_path / "net.onnx", "openvino") == 0


def layer_macs(net):
    """MACs of each layer on an image of the benchmark's size."""
    with MacCounter(net) as counter:
        net(torch.rand(1, 3, benchmark.SIZE, benchmark.SIZE))
        counted = {module: macs for (module, _), macs in counter.macs.items()}
    return {name: counted[layer] for name, layer in net.layers().items()}
