"""Networks that the package spandrel recognises by their weights."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from zoo import ZOO

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    finetune,
    load_checkpoint,
    load_network,
    save_checkpoint,
    save_packed,
)
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork, build_base, example_input
from adabm_basicsr.quantization.structure.roles import Role

COMPACT = {
    "type": "SRVGGNetCompact",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_conv": 3,
    "upscale": 2,
}
RRDB = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}
NETWORKS = {
    "compact x2": COMPACT,
    "compact x4": {**COMPACT, "upscale": 4},
    "rrdb x4": {**RRDB, "scale": 4},
    "rrdb x2, unshuffled": {**RRDB, "scale": 2},
}


@pytest.fixture
def spandrel():
    return pytest.importorskip("spandrel")


def basicsr_network(options):
    torch.manual_seed(0)
    return build_network(dict(options)).eval()


def image(height=16, width=12, channels=3):
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(1))


def load(path):
    return build_base({"type": "Spandrel", "path": str(path)}).eval()


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("key", ["params", "params_ema"])
def test_same_output_as_basicsrs_own(spandrel, tmp_path, options, key):
    expected = basicsr_network(options)
    torch.save({key: expected.state_dict()}, tmp_path / "net.pth")
    net = load(tmp_path / "net.pth")
    assert (net.in_channels, net.scale) == (3, options.get("upscale") or options["scale"])
    # Not the 12 channels that the first convolution takes at x2.
    assert example_input(net, {}).shape[1] == 3
    with torch.no_grad():
        assert torch.equal(net(image()), expected(image()))


def test_half_precision_file_becomes_float(spandrel, tmp_path):
    from safetensors.torch import save_file

    expected = basicsr_network(COMPACT).half().float()
    save_file(
        {key: value.half() for key, value in expected.state_dict().items()},
        tmp_path / "net.safetensors",
    )
    net = load(tmp_path / "net.safetensors")
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    with torch.no_grad():
        assert torch.equal(net(image()), expected(image()))


def test_network_that_takes_a_noise_level_besides(spandrel, tmp_path):
    from spandrel.architectures.DRUNet import DRUNet

    torch.manual_seed(0)
    torch.save(DRUNet(in_nc=4, out_nc=3, nc=[8, 8, 8, 8], nb=2).state_dict(), tmp_path / "net.pth")
    net = load(tmp_path / "net.pth")
    assert (net.in_channels, net.scale) == (3, 1)
    expected = spandrel.ModelLoader("cpu").load_from_file(tmp_path / "net.pth")(image(16, 24))
    with torch.no_grad():
        assert torch.equal(net(image(16, 24)).clamp(0, 1), expected)


def test_output_has_gradients_and_is_not_clamped(spandrel, tmp_path):
    torch.save(basicsr_network(COMPACT).state_dict(), tmp_path / "net.pth")
    net = load(tmp_path / "net.pth")
    output = net(image() * 3)
    output.sum().backward()
    assert output.max() > 1
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_train_then_test_without_another_checkpoint(spandrel, workspace):
    torch.save({"params": basicsr_network(COMPACT).state_dict()}, "net.pth")
    network = {"type": "Spandrel", "path": "net.pth"}
    workspace.train(network_g__network=network, path={})
    workspace.test(network_g__network=network)
    metrics = json.loads(Path("results/tiny_test/metrics.json").read_text())["Val"]
    assert 3 <= metrics["fab"] <= 5
    workspace.test(name="full", network_g=network, path={})
    full = json.loads(Path("results/full/metrics.json").read_text())["Val"]
    assert full["fab"] == 32
    assert full["psnr"] != metrics["psnr"]


def quantized_drunet(tmp_path):
    """A quantized network that takes a noise level besides; its checkpoint is gone."""
    from spandrel.architectures.DRUNet import DRUNet

    torch.manual_seed(0)
    path = tmp_path / "net.pth"
    torch.save(DRUNet(in_nc=4, out_nc=3, nc=[8, 8, 8, 8], nb=2).state_dict(), path)
    net = AdaBMNetwork(network={"type": "Spandrel", "path": str(path)}, recipe="static")
    path.unlink()
    return calibrate(net, [image(16, 24)])


def test_files_name_the_architecture_and_no_path(spandrel, tmp_path):
    net = quantized_drunet(tmp_path)
    save_checkpoint(net, tmp_path / "quantized.pth")
    save_packed(net, tmp_path / "quantized.safetensors")
    for name in ("quantized.pth", "quantized.safetensors"):
        assert str(tmp_path).encode() not in (tmp_path / name).read_bytes()
        again = load_network(tmp_path / name)
        assert again.description == net.description
        with torch.no_grad():
            assert torch.equal(again(image(20, 30)), net(image(20, 30)))


def test_a_path_that_a_file_names_is_not_opened(spandrel, tmp_path):
    net = quantized_drunet(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # opening it would wait for ever
    net.network_options = {"type": "Spandrel", "path": str(fifo)}
    for save, name in ((save_checkpoint, "quantized.pth"), (save_packed, "quantized.safetensors")):
        save(net, tmp_path / name)
        with pytest.raises(AdaBMError, match="which isn't opened because a file says so"):
            load_network(tmp_path / name)


REBUILT = {"type": "Spandrel", "architecture": "Compact", "variant": "SRVGGNetCompact"}
WRONG = {
    "architecture: 'Compakt' is none of spandrel's; did you mean 'Compact'": {
        "architecture": "Compakt"
    },
    "variant: 'os' is no network of Compact; valid: 'SRVGGNetCompact'": {"variant": "os"},
    "hyperparameters: None is no section of keys": {"hyperparameters": None},
    "Compact cannot be built from hyperparameters ['num_feats']": {
        "hyperparameters": {"num_feats": 8}
    },
    "path and architecture are given; give one of them": {"path": "x.pth"},
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_architectures(spandrel, text):
    with pytest.raises(AdaBMError) as caught:
        build_base({**REBUILT, "hyperparameters": {"num_feat": 8}, **WRONG[text]})
    assert text in str(caught.value)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(AdaBMError) as caught:
        load("x.pth")
    assert str(caught.value) == (
        "network_g: network: type: Spandrel needs the package spandrel: pip install spandrel"
    )


def fails(path):
    with pytest.raises(AdaBMError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith("network_g: network: path: ")
    assert "\n" not in message
    return message


def test_missing_file(spandrel, tmp_path):
    assert fails(tmp_path / "no.pth").endswith("no.pth does not exist")


def test_path_that_is_none(spandrel):
    with pytest.raises(AdaBMError, match="path: None is not the path of a checkpoint"):
        build_base({"type": "Spandrel", "path": None})


def test_missing_path(spandrel):
    with pytest.raises(AdaBMError, match="path: None is not the path of a checkpoint"):
        build_base({"type": "Spandrel"})


def test_unrecognised_weights(spandrel, tmp_path, tiny):
    torch.save({"params": tiny.state_dict()}, tmp_path / "edsr.pth")
    assert "spandrel doesn't recognise the architecture" in fails(tmp_path / "edsr.pth")


def test_file_that_is_no_checkpoint(spandrel, tmp_path):
    for name in ("net.pth", "net.pt", "net.safetensors", "net.yml"):
        (tmp_path / name).write_text("name: x\nno: checkpoint\n")
        assert f"spandrel cannot load {tmp_path / name}: " in fails(tmp_path / name)


def test_checkpoint_with_code(spandrel, tmp_path):
    torch.save(
        {"params": basicsr_network(COMPACT).state_dict(), "code": Path("x")}, tmp_path / "net.pth"
    )
    assert "forbidden" in fails(tmp_path / "net.pth")


def test_truncated_state(spandrel, tmp_path):
    state = basicsr_network(COMPACT).state_dict()
    del state["body.2.bias"]
    torch.save(state, tmp_path / "net.pth")
    message = fails(tmp_path / "net.pth")
    assert "spandrel cannot load" in message
    assert "body.2.bias" in message


def test_weights_that_are_not_finite(spandrel, tmp_path):
    state = basicsr_network(COMPACT).state_dict()
    state["body.2.bias"][0] = float("nan")
    torch.save(state, tmp_path / "net.pth")
    assert fails(tmp_path / "net.pth").endswith("body.2.bias holds NaN or infinite values")


@pytest.mark.parametrize("purpose", ["Inpainting", "FaceSR"])
def test_other_kinds_of_networks(spandrel, tmp_path, monkeypatch, purpose):
    network = torch.nn.Conv2d(3, 3, 1)
    given = {
        "architecture": spandrel.MAIN_REGISTRY[
            "LaMa" if purpose == "Inpainting" else "GFPGAN"
        ].architecture,
        "purpose": purpose,
        "tags": [],
        "supports_half": False,
        "supports_bfloat16": False,
        "input_channels": 3,
        "output_channels": 3,
    }
    if purpose == "Inpainting":
        descriptor = spandrel.MaskedImageModelDescriptor(network, network.state_dict(), **given)
    else:
        descriptor = spandrel.ImageModelDescriptor(network, network.state_dict(), scale=1, **given)
    monkeypatch.setattr(spandrel.ModelLoader, "load_from_file", lambda self, path: descriptor)
    (tmp_path / "net.pth").touch()
    message = fails(tmp_path / "net.pth")
    assert f"is a network for {purpose} (" in message
    assert message.endswith("only super-resolution and restoration networks can be quantized")


# Networks that tables of positions, inputs changed in place, subsets of tokens or U-shapes make
# unlike BasicSR's own.
NAMES = ("ATD", "DAT", "HAT", "NAFNet", "OmniSR", "PLKSR", "SPAN", "Swin2SR")
PECULIAR = {name: ZOO[name].options for name in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", PECULIAR)
def test_round_trip(spandrel, tmp_path, name):
    torch.manual_seed(0)
    module = importlib.import_module(f"spandrel.architectures.{name}")
    torch.save(
        {"params": getattr(module, name)(**PECULIAR[name]).state_dict()}, tmp_path / "net.pth"
    )

    def network():
        return AdaBMNetwork(
            network={"type": "Spandrel", "path": str(tmp_path / "net.pth")}, w_bits=8, a_bits=8
        )

    net = network()
    batch = F.interpolate(torch.rand(4, 3, 6, 6), size=(32, 40), mode="bicubic").clamp(0, 1)
    finetune(calibrate(net, [batch]), [batch] * 2, iterations_per_epoch=1)
    save_checkpoint(net, tmp_path / "quantized.pth")
    again = load_checkpoint(network(), tmp_path / "quantized.pth")
    alone = load_network(tmp_path / "quantized.pth")
    with torch.no_grad():
        output = net(batch)
        with net.full_precision():
            teacher = net(batch)
        assert torch.equal(again(batch), output)
        assert torch.equal(alone(batch), output)
    assert (output - teacher).square().mean() <= 1e-3 * teacher.var()
    macs, roles = net.structure.macs, net.structure.roles
    assert sum(macs[layer] for layer, role in roles.items() if role is Role.BODY) >= 0.4 * sum(
        macs.values()
    )


SHARED_NETWORKS = {
    "realesr-animevideov3_x4.pth": {
        **COMPACT,
        "num_feat": 64,
        "num_conv": 16,
        "upscale": 4,
        "act_type": "prelu",
    },
    "RealESRGAN_x4plus_anime_6B_fp16.pth": {**RRDB, "num_feat": 64, "num_block": 6, "scale": 4},
}


@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED_NETWORKS)
def test_published_weights(spandrel, shared, name):
    path = shared / "weights" / name
    expected = load_checkpoint(basicsr_network(SHARED_NETWORKS[name]), path)
    net = load(path)
    assert (net.in_channels, net.scale) == (3, 4)
    with torch.no_grad():
        assert torch.equal(net(image(24, 32)), expected(image(24, 32)))
