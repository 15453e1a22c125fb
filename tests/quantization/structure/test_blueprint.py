"""Blueprints: as JSON and back, damaged ones, and those of other networks."""

import copy
import json

import pytest
import torch
from small_networks import EXAMPLE, Block, Interpolating, conv
from torch import nn

from adabm_basicsr import AdaBMError, quantize
from adabm_basicsr.quantization.api import make_config
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.blueprint import find_blueprint, read_blueprint

CONFIG = make_config(
    {
        "fully_quantized": True,
        "attention_products": True,
        "engine": "onnxruntime",  # its sums are integers
        "w_bits": 8,
        "a_bits": 8,
    }
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        mixed = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return x + mixed.transpose(1, 2).view_as(x)


def network():
    torch.manual_seed(0)
    normalised = nn.utils.parametrizations.weight_norm(conv(8, 8))
    layers = [conv(3, 8), nn.BatchNorm2d(8), Block(), Block(), Attention(), normalised]
    return nn.Sequential(*layers, conv(8, 3)).eval()


@pytest.fixture(scope="module")
def described():
    return find_blueprint(network(), CONFIG, EXAMPLE).describe()


def test_json_and_back(described):
    blueprint = find_blueprint(network(), CONFIG, EXAMPLE)
    assert blueprint.preparation.folded == [("0", "1")]
    assert blueprint.preparation.normalised == ["5"]
    assert len(blueprint.structure.products) == 2
    assert "2.quantized_joins.0" in blueprint.joins.operands
    assert read_blueprint(json.loads(json.dumps(described))) == blueprint
    assert find_blueprint(Interpolating(2), CONFIG, EXAMPLE) != blueprint


def test_a_network_built_by_it_is_the_same(described):
    class Unrunnable(nn.Sequential):
        def forward(self, x):
            raise AssertionError

    net = QuantizedNetwork(network(), CONFIG, EXAMPLE)
    again = QuantizedNetwork(Unrunnable(*network()), CONFIG, EXAMPLE, read_blueprint(described))
    assert again.plan == net.plan
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in net.state_dict().items()
    }


def test_adopting_it(described):
    net = QuantizedNetwork(network(), CONFIG, EXAMPLE)
    before = net.state_dict()
    other = read_blueprint(described)
    other.structure.blocks = ["2"]
    other.preparation.folded = []
    net.adopt(other)
    assert isinstance(net.network[1], nn.BatchNorm2d)
    net.adopt(read_blueprint(described))
    assert isinstance(net.network[1], nn.Identity)
    assert len(net.network[4]._forward_hooks) == 1
    assert before.keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


DAMAGES = {
    "blueprint: 3 can't be": lambda d: 3,
    "blueprint: plan is missing": lambda d: d.pop("plan"),
    "preparation: unknown key 'x'": lambda d: d["preparation"].update(x=1),
    "size_multiple: 1000000 can't be": lambda d: d.update(size_multiple=10**6),
    "in_channels: True can't be": lambda d: d.update(in_channels=True),
    "roles: 0: 'chief' can't be": lambda d: d["structure"]["roles"].update({"0": "chief"}),
    "macs and roles are of other layers": lambda d: d["structure"]["macs"].pop("0"),
    "calls: 0: 0 can't be": lambda d: d["structure"]["calls"].update({"0": 0}),
    "macs: 0: 1e+30 can't be": lambda d: d["structure"]["macs"].update({"0": 1e30}),
    "blocks: None can't be": lambda d: d["structure"].update(blocks=[None]),
    "unbatched: 'x' can't be": lambda d: d["structure"].update(unbatched=["x"]),
    "preparation: folded: ['0'] can't be": lambda d: d["preparation"].update(folded=[["0"]]),
    "layers: 0: a_bits: 9 can't be": lambda d: d["plan"]["layers"]["0"].update(a_bits=9),
    "layers: 0: fixed: 1 can't be": lambda d: d["plan"]["layers"]["0"].update(fixed=1),
    "layers: {} can't be": lambda d: d["plan"].update(layers={}),
    "joins: operands: 2.quantized_joins.0: 0 can't be": lambda d: d["joins"]["operands"].update(
        {"2.quantized_joins.0": 0}
    ),
    "joins: values: 'x.input_quantizer' can't be": lambda d: d["joins"]["values"].append(
        ["x.input_quantizer"]
    ),
    "joins: values: None can't be": lambda d: d["joins"].update(values=None),
    "skipped: [] can't be": lambda d: d["plan"].update(skipped=[]),
}


@pytest.mark.parametrize("text", DAMAGES)
def test_damaged_ones_are_rejected(text, described):
    changed = copy.deepcopy(described)
    if DAMAGES[text](changed) == 3:
        changed = 3
    with pytest.raises(AdaBMError) as caught:
        read_blueprint(changed)
    message = str(caught.value)
    assert message == f"the description of the network is damaged: {text}"


def renamed(described, old, new):
    """``described`` with other names of layers."""
    return json.loads(json.dumps(described).replace(f'"{old}', f'"{new}'))


OTHERS = {
    "'9.qkv' is no layer of the network that can be quantized": ("4.qkv", "9.qkv"),
    "the network has no product '4.x.quantized_products.0'": (
        "4.quantized_products",
        "4.x.quantized_products",
    ),
    "the network has no join '2.x.quantized_joins.0'": (
        "2.quantized_joins",
        "2.x.quantized_joins",
    ),
}


@pytest.mark.parametrize("text", OTHERS)
def test_those_of_other_networks_are_rejected(text, described):
    blueprint = read_blueprint(renamed(described, *OTHERS[text]))
    with pytest.raises(AdaBMError, match=text):
        QuantizedNetwork(network(), CONFIG, EXAMPLE, blueprint)


def test_blocks_and_preparations_of_other_networks_are_rejected(described):
    net = QuantizedNetwork(network(), CONFIG, EXAMPLE)
    for change, text in {
        lambda b: b.structure.blocks.append("9"): "the network has no block '9'",
        lambda b: b.preparation.rewritten.append("0"): "nothing to be rewritten at '0'",
        lambda b: b.preparation.normalised.append("0"): "nothing to be normalised at '0'",
        lambda b: b.preparation.folded.append(("0", "2")): "nothing to be folded at '0, 2'",
    }.items():
        blueprint = read_blueprint(copy.deepcopy(described))
        change(blueprint)
        with pytest.raises(AdaBMError, match=text):
            net.adopt(blueprint)
    assert net.blueprint == read_blueprint(described)


def test_a_layer_that_starts_as_a_colour_shift_is_quantized_by_its_plan():
    class Shifted(Interpolating):
        def __init__(self, identity):
            super().__init__(2)
            self.shift = nn.Conv2d(3, 3, 1)
            if identity:
                nn.init.dirac_(self.shift.weight)

        def forward(self, x):
            return super().forward(self.shift(x))

    trained = quantize(Shifted(False), EXAMPLE, fully_quantized=True)
    fresh = quantize(Shifted(True), EXAMPLE, fully_quantized=True)
    assert "shift" in trained.plan.layers
    assert "shift" not in fresh.plan.layers
    fresh.adopt(trained.blueprint)
    assert fresh.state_dict().keys() == trained.state_dict().keys()
