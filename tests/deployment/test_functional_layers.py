"""Files of networks that call functions with parameters of their own."""

import pytest
import torch
from agreement import check_agreement, smooth
from basicsr.utils.registry import ARCH_REGISTRY
from users_networks import Functional

from adabm_basicsr import calibrate, save_onnx
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.deployment.packed import load_packed, save_packed
from adabm_basicsr.quantization.measures.cost import CostMeter, size_bytes


@pytest.fixture
def net(monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Functional", Functional)
    network = {"type": "Functional"}
    net = AdaBMNetwork(network, w_bits=8, a_bits=8, recipe="static", fully_quantized=True)
    return calibrate(net, [smooth(4)])


def test_packed_files_hold_integers(net, tmp_path):
    save_packed(net, tmp_path / "net.safetensors")
    again = load_packed(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(again(smooth(2)), net(smooth(2)))
        with CostMeter(net) as meter:
            net(smooth(1))
            cost = meter.read()
    assert cost.bitops == pytest.approx(cost.float_bitops / 16)
    weights = sum(p.numel() for p in net.base_parameters() if p.dim() > 1)
    assert size_bytes(net) < net.full_precision_bytes() - 2 * weights


def test_graphs_compute_what_the_simulation_does(net, tmp_path):
    save_onnx(net, tmp_path / "net.onnx")
    check_agreement(net, tmp_path / "net.onnx", runtimes=["onnxruntime"])
