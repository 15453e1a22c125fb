"""Checkpoints: plain ones in all wrappings and quantized ones, written whole or not at all."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    finetune,
    load_checkpoint,
    quantize,
    save_checkpoint,
)
from adabm_basicsr.quantization.checkpoint import read_checkpoint

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def calibrated(network, **options):
    return calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])


def test_checkpoint_round_trip(tiny, tmp_path):
    net = finetune(calibrated(tiny, fully_quantized=True), [IMAGES] * 6, iterations_per_epoch=2)
    save_checkpoint(net, tmp_path / "net.pth")
    again = load_checkpoint(quantize(tiny, IMAGES[:1], fully_quantized=True), tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.equal(net(IMAGES), again(IMAGES))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params": state},
        lambda state: {"params_ema": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"params": {f"module.{key}": value.half() for key, value in state.items()}},
    ],
)
def test_plain_checkpoints_in_all_wrappings(tiny, tmp_path, wrap):
    state = {key: value.half().float() for key, value in tiny.state_dict().items()}
    torch.save(wrap(state), tmp_path / "plain.pth")
    net = load_checkpoint(quantize(tiny, IMAGES[:1]), tmp_path / "plain.pth")
    assert torch.equal(net.network.conv_last.weight, state["conv_last.weight"])
    assert net.stage == 0


def test_plain_checkpoint_keys_are_recognisable(tiny):
    net = quantize(tiny, IMAGES[:1])
    base = {key for key in net.state_dict() if "quantizer" not in key}
    assert base >= {f"network.{key}" for key in tiny.state_dict()}


@pytest.mark.parametrize("key", ["params", "params_ema", "state_dict", "model"])
def test_weights_are_found_under_the_keys_of_other_trainers(key, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    torch.save({key: network.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    assert read_checkpoint(tmp_path / "net.pth").keys() == network.state_dict().keys()
    torch.save({"generator": network.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    with pytest.raises(
        AdaBMError, match="holds 'generator', 'epoch'; weights are looked for under"
    ):
        read_checkpoint(tmp_path / "net.pth")
    assert read_checkpoint(tmp_path / "net.pth", "generator").keys() == network.state_dict().keys()


def test_writing_fails_without_harm(tiny, tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    path.write_bytes(b"the previous one")
    net = quantize(tiny, IMAGES[:1])

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(AdaBMError, match=r"cannot write .*No space left on device"):
        save_checkpoint(net, path)
    assert path.read_bytes() == b"the previous one"
    assert list(tmp_path.iterdir()) == [path]


class Wrapped(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.module = copy.deepcopy(network)

    def forward(self, x):
        return self.module(x)


class WithLast(Wrapped):
    """Has a layer of its own of the name that one of the inner network's has."""

    def __init__(self, network):
        super().__init__(network)
        self.conv_last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv_last(self.module(x))


@pytest.mark.parametrize("kind", [Wrapped, WithLast])
def test_network_with_a_child_called_module(tiny, tmp_path, kind):
    source = kind(tiny)
    plain = kind(tiny)
    parallel = nn.DataParallel(kind(tiny))
    parallel.module.load_state_dict(source.state_dict())
    net = quantize(kind(tiny), IMAGES[:1])
    for index, state in enumerate((source.state_dict(), parallel.state_dict())):
        torch.save({"params": state}, tmp_path / f"{index}.pth")
        for kind_of_network in (net, plain):
            loaded = load_checkpoint(kind_of_network, tmp_path / f"{index}.pth")
            with torch.no_grad(), net.full_precision():
                assert torch.equal(loaded(IMAGES), source(IMAGES))


CHANGES = {
    "it has 0 quantized layers, the options give 4": {"layer_bits": torch.tensor(3)},
    "1 of another kind \\(network.conv_last.bias is complex64 instead of float32\\)": {
        "network.conv_last.bias": torch.ones(3, dtype=torch.cfloat)
    },
    "stage is int64 instead of uint8": {"stage": torch.tensor(256)},
    "it is of a stage 7": {"stage": torch.tensor(7)},
    "body.0.conv1 has weights of 9 bits": {
        "network.body.0.conv1.weight_quantizer.allocated": torch.tensor(9)
    },
    "channel_scale isn't above 0": {
        "network.body.0.conv1.input_quantizer.channel_scale": torch.zeros(1, 8, 1, 1)
    },
}


@pytest.mark.parametrize("text", CHANGES)
def test_values_that_no_quantized_network_has(text, tiny):
    net = quantize(tiny, IMAGES[:1])
    with pytest.raises(AdaBMError, match=text):
        net.load_state_dict({**calibrated(tiny).state_dict(), **CHANGES[text]})
