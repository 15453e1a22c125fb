"""Functions that modules call with their own parameters become layers."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from small_networks import conv
from torch import nn
from users_networks import Functional, FunctionalBody, parameter

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    finetune,
    load_checkpoint,
    quantize,
    save_checkpoint,
)
from adabm_basicsr.quantization.structure.functional import find_functions
from adabm_basicsr.quantization.structure.preparation import find_preparation

IMAGES = F.interpolate(torch.rand(4, 3, 6, 6), size=(24, 20), mode="bicubic").clamp(0, 1)


LAYERS = ["first"]
for block in range(2):
    LAYERS += [f"blocks.{block}.functional_layers.{layer}" for layer in range(3)]
LAYERS.append("last.functional_layers.0")


def quantized(network, **options):
    options = {"w_bits": 8, "a_bits": 8, "recipe": "fast", "fully_quantized": True, **options}
    return quantize(network, IMAGES[:1], **options)


def test_functions_are_quantized_as_layers_are(tmp_path):
    network = Functional().eval()
    with torch.no_grad():
        expected = network(IMAGES)
    net = quantized(network)
    assert list(net.layers()) == LAYERS
    assert net.structure.blocks == ["blocks.0", "blocks.1"]
    assert not net.structure.unsupported
    assert not net.structure.other_macs
    finetune(calibrate(net, [IMAGES]), [IMAGES[:2]] * 2, iterations_per_epoch=2)
    with torch.no_grad():
        with net.full_precision():
            torch.testing.assert_close(net(IMAGES), expected)
        output = net(IMAGES)
        torch.testing.assert_close(output, expected, atol=0.05, rtol=0)
        assert not torch.equal(output, expected)
        assert torch.equal(copy.deepcopy(net)(IMAGES), output)
        assert torch.equal(pickle.loads(pickle.dumps(net))(IMAGES), output)
        save_checkpoint(net, tmp_path / "net.pth")
        again = load_checkpoint(quantized(Functional()), tmp_path / "net.pth")
        assert torch.equal(again(IMAGES), output)


def test_plain_weights_are_loaded_under_their_own_names(tmp_path):
    network = Functional().eval()
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    net = load_checkpoint(quantized(Functional()), tmp_path / "plain.pth")
    with torch.no_grad(), net.full_precision():
        torch.testing.assert_close(net(IMAGES), network(IMAGES))


class Varied(nn.Module):
    """Calls one weight in two ways, another one with a bias that it computes."""

    def __init__(self):
        super().__init__()
        self.first, self.weight, self.other = conv(3, 8), parameter(8, 8, 3, 3), parameter(3, 8)
        self.bias = parameter(3)

    def forward(self, x):
        x = self.first(x)
        x = F.conv2d(F.conv2d(x, self.weight, padding=1), self.weight, padding=2, dilation=2)
        x = F.linear(x.permute(0, 2, 3, 1), self.other, self.bias * 2)
        return x.permute(0, 3, 1, 2)


def test_what_no_layer_can_stand_for_stays():
    assert find_functions(Varied(), IMAGES) == []


class Switching(FunctionalBody):
    """Calls its weight in another way on large images."""

    def forward(self, x):
        wide = int(x.shape[2] > 24)
        return F.conv2d(x, self.weight, self.bias, padding=1 + wide, dilation=1 + wide)


def test_a_call_with_other_settings_is_computed_in_full_precision():
    network = nn.Sequential(conv(3, 8), Switching(), conv(8, 3)).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(image)
        net = quantized(network, recipe="static")
        with net.full_precision():
            torch.testing.assert_close(net(image), expected)


def test_functions_that_a_network_lacks_are_rejected():
    network = Functional()
    preparation = find_preparation(network, IMAGES, fold=True)
    assert len(preparation.functions) == 7
    preparation.functions[0].weight = "no"
    with pytest.raises(AdaBMError, match=r"nothing to be made a layer at 'blocks\.0\.no'"):
        preparation.check(network)
