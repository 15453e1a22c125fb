"""Of networks that give more than an image, the first image is taken."""

import logging

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from users_networks import GivesList, GivesNumberFirst, GivesTuple, Smooth

from adabm_basicsr import OnnxNetwork, calibrate, finetune, quantize, save_onnx
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.deployment.packed import load_packed, save_packed

IMAGES = torch.rand(4, 3, 20, 24, generator=torch.Generator().manual_seed(0))
OPTIONS = {"w_bits": 8, "a_bits": 8, "recipe": "fast"}


def finetuned(network):
    torch.manual_seed(0)
    net = quantize(network(), IMAGES[:1], **OPTIONS)
    return finetune(calibrate(net, [IMAGES]), [IMAGES[:2]] * 2, iterations_per_epoch=2)


@pytest.mark.parametrize("network", [GivesTuple, GivesList, GivesNumberFirst])
def test_the_first_image_is_taken(network, caplog):
    net = finetuned(network)
    with torch.no_grad():
        assert torch.equal(net(IMAGES), finetuned(Smooth)(IMAGES))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    [said] = [record.getMessage() for record in warnings]
    assert said.startswith(f"{network.__name__} gives ")
    assert said.endswith("the first image among them, of shape (1, 3, 34, 38), is taken")


def test_files_give_the_first_image_too(monkeypatch, tmp_path):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "GivesTuple", GivesTuple)
    net = calibrate(AdaBMNetwork({"type": "GivesTuple"}, recipe="static"), [IMAGES])
    save_packed(net, tmp_path / "net.safetensors")
    save_onnx(net, tmp_path / "net.onnx")
    with torch.no_grad():
        expected = net(IMAGES[:1])
        assert torch.equal(load_packed(tmp_path / "net.safetensors")(IMAGES[:1]), expected)
    output = OnnxNetwork(tmp_path / "net.onnx", "onnxruntime")(IMAGES[:1])
    assert (output - expected).abs().max() < 0.02
