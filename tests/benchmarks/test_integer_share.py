"""What the runtimes say that they execute as integers."""

import pytest
from agreement import quantized
from conftest import TINY_EDSR

from adabm_basicsr import save_onnx
from adabm_basicsr.deployment.runtimes import has_exact_int8
from adabm_basicsr.quantization.macs import MacCounter

integer_share = pytest.importorskip("integer_share").integer_share


def test_openvino_runs_every_quantized_layer_as_integers(tmp_path):
    net = quantized(TINY_EDSR)
    save_onnx(net, tmp_path / "net.onnx")
    deep = {name for name, quantizer in net.weight_quantizers().items() if quantizer.bits == 8}
    macs = shares(net)
    expected = 1.0 if has_exact_int8() else sum(share for name, share in macs.items() if name not in deep)
    assert 0.3 < expected == pytest.approx(integer_share(tmp_path / "net.onnx", "openvino"), abs=1e-3)
    assert 0 <= integer_share(tmp_path / "net.onnx", "onnxruntime") <= expected


def test_full_precision_runs_nothing_as_integers(tmp_path):
    save_onnx(quantized(TINY_EDSR, w_bits=32, fully_quantized=False), tmp_path / "net.onnx")
    assert integer_share(tmp_path / "net.onnx", "openvino") == 0


def shares(net):
    """Share of the MACs of each layer."""
    import torch

    with MacCounter(net) as counter:
        net(torch.rand(1, 3, 64, 64))
        counted = {module: macs for (module, _), macs in counter.macs.items()}
    macs = {name: counted[layer] for name, layer in net.layers().items()}
    return {name: count / sum(macs.values()) for name, count in macs.items()}
