"""Sums and concatenations are found, and each value has one quantizer wherever it is quantized."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from conftest import TINY_EDSR
from torch import nn

from adabm_basicsr import calibrate, finetune, quantize
from adabm_basicsr.quantization.engines import ALL_SUMS, CONCATENATIONS, RESIDUAL
from adabm_basicsr.quantization.structure.joins import find_joins

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))
FOR_SUMS = {"engine": "onnxruntime", "w_bits": 8, "a_bits": 8, "recipe": "fast"}


def test_a_trunk_is_one_value_for_the_layer_and_the_sum_behind_it(tiny):
    joins = find_joins(tiny.eval(), IMAGES[:1], ALL_SUMS)
    assert joins.operands == {
        "body.0.quantized_joins.0": 2,
        "body.1.quantized_joins.0": 2,
        "quantized_joins.0": 2,
    }
    values = [set(places) for places in joins.values]
    assert {
        "body.1.conv1.input_quantizer",
        "body.1.quantized_joins.0.operands.0",
        "body.0.quantized_joins.0.output",
    } in values
    # A ReLU comes first.
    assert {"body.0.conv2.input_quantizer"} in values
    # The pixel shuffle moves integers to other places.
    assert {"conv_last.input_quantizer", "upsample.0.output_quantizer"} in values
    assert {"conv_last.output_quantizer"} in values


def test_what_is_added_to_a_layer_may_be_all(tiny):
    joins = find_joins(tiny.eval(), IMAGES[:1], RESIDUAL)
    operands = {place for places in joins.values for place in places if ".operands." in place}
    assert operands == {
        "body.0.quantized_joins.0.operands.0",
        "body.1.quantized_joins.0.operands.0",
        "quantized_joins.0.operands.1",
    }
    assert not any(place.endswith("output") for places in joins.values for place in places)


class Body(nn.Module):
    """A network around a function of three layers and 8 channels."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x), self.convs))


def halves(x, convs):
    left, right = convs[0](x).chunk(2, 1)
    return convs[1](torch.cat([right, left], 1))


def dense(x, convs):
    y = convs[0](x)
    z = torch.cat([y[:, :4], x[:, :4] / 2], 1)
    return torch.cat([convs[1](z)[:, :4], z[:, 4:]], 1) * x.mean((2, 3), keepdim=True) + y


def test_what_is_concatenated_for_a_layer_has_one_grid_and_sums_have_none():
    torch.manual_seed(0)
    joins = find_joins(Body(dense), IMAGES[:1], CONCATENATIONS)
    values = [set(places) for places in joins.values]
    of_layer = [f"quantized_joins.0.operands.{place}" for place in range(2)]
    # The second concatenation, which no layer takes, has a part of the first.
    united = {*of_layer, "convs.1.input_quantizer", "quantized_joins.1.operands.1"}
    assert united in values
    assert {"quantized_joins.1.operands.0"} in values
    assert joins.operands["quantized_joins.2"] == 2
    assert not any("quantized_joins.2" in place for places in values for place in places)


def scaled(x, convs):
    y = x + convs[0](x) * 0.2
    return convs[1](y) + y / 4


def in_place(x, convs):
    y = convs[0](x)
    y += x
    return convs[1](F.relu_(y)).add_(y)


def twice(x, convs):
    return convs[0](convs[0](x) + x)


def gated(x, convs):
    return x + convs[0](x) * torch.sigmoid(convs[1](x))


def with_itself(x, convs):
    y = convs[0](x)
    return y + y


def by_keywords(x, convs):
    return torch.cat(tensors=[convs[0](x)[:, :4], F.leaky_relu(convs[1](x))[:, 4:]], dim=-3)


def by_another_name(x, convs):
    total = x
    total += convs[0](x)
    return convs[1](x + total)


def as_a_statement(x, convs):
    y = convs[0](x)
    y.add_(x)
    return convs[1](y)


FUNCTIONS = [
    halves,
    scaled,
    in_place,
    twice,
    gated,
    with_itself,
    by_keywords,
    by_another_name,
    as_a_statement,
]


def body(function, **options):
    torch.manual_seed(0)
    network = Body(function)
    options = {**FOR_SUMS, "fully_quantized": True, **options}
    return calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_all_operands_and_sums_are_integers(function):
    net = body(function)
    with torch.no_grad():
        output = net(IMAGES)
        with net.full_precision():
            full = net(IMAGES)
    assert (output - full).abs().max() < 0.05
    levels = []

    def note(join, args, output):
        _, values = args
        for quantizer, value in zip(join.operands, values, strict=True):
            levels.append(len(quantizer(value).unique()))
        if not isinstance(join.output, nn.Identity):
            levels.append(len(output.unique()))

    for name in net.blueprint.joins.operands:
        net.network.get_submodule(name).register_forward_hook(note)
    with torch.no_grad():
        net(IMAGES)
    assert len(levels) > 1
    assert max(levels) <= 256


def same_for_all_images(x, convs):
    map_of_rows = torch.linspace(0, 1, x.shape[2]).view(1, 1, -1, 1).expand(1, *x.shape[1:])
    y = convs[1](x + convs[0](map_of_rows))
    return y + convs[2](x)


def test_a_batch_takes_the_joins_that_an_image_takes():
    net = body(same_for_all_images)
    with torch.no_grad():
        of_batch = net(IMAGES)
        of_images = torch.cat([net(image) for image in IMAGES.split(1)])
    torch.testing.assert_close(of_batch, of_images)


def weighed(x, convs):
    weights = convs[1](F.relu(convs[0](x.mean((2, 3), keepdim=True))))
    return x + convs[2](x) * torch.sigmoid(weights)


@pytest.mark.parametrize("function", [weighed, twice])
def test_sums_within_layers_are_their_own(function):
    net = body(function)
    joined = []
    for name in net.blueprint.joins.operands:
        join = net.network.get_submodule(name)
        join.register_forward_hook(lambda join, args, output: joined.extend(args[1]))
    # A bias looks like an image of one pixel then.
    pixel = IMAGES[:1, :, :1, :1]
    with torch.no_grad():
        trunk = net.network.first(pixel)
        net(pixel)
    assert len(joined) == 2
    assert any(torch.equal(operand, trunk) for operand in joined)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Trunk(nn.ModuleList):
    def forward(self, x):
        for block in self:
            x = x + block(x)
        return x


def test_containers_do_not_run_their_joins():
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)]
    network = Residual(convs[0], Residual(convs[1], nn.ReLU()), Trunk(convs[2:]))
    options = {**FOR_SUMS, "fully_quantized": True}
    net = calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])
    assert len(net.blueprint.joins.operands) == 4
    with torch.no_grad():
        assert (net(IMAGES) - network(IMAGES)).abs().max() < 0.1
        with net.full_precision():
            torch.testing.assert_close(net(IMAGES), network(IMAGES))


def test_a_multiple_of_integers_is_not_rounded_again():
    net = body(scaled)
    first = net.network.get_submodule("quantized_joins.0")
    assert all(isinstance(operand, nn.Identity) for operand in first.operands)
    assert net.network.convs[0].output_quantizer is not None


def test_values_share_a_quantizer_with_the_layer_that_takes_them():
    net = body(twice)
    layer = net.network.convs[0]
    join = net.network.get_submodule("quantized_joins.0")
    assert join.output is layer.input_quantizer
    names = net.activation_quantizers()
    assert len(set(names.values())) == len(names)


def test_what_stays_in_float_is_not_quantized():
    options = {"engine": "onnxruntime", "w_bits": 8, "a_bits": 8, "recipe": "fast"}
    network = build_network(dict(TINY_EDSR))
    net = calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])
    whole = net.network.get_submodule("quantized_joins.0")
    assert all(isinstance(module, nn.Identity) for module in [*whole.operands, whole.output])
    assert not isinstance(net.network.get_submodule("body.0.quantized_joins.0").output, nn.Identity)


class Attention(nn.Module):
    def forward(self, x):
        pixels = x.flatten(2)
        return x + (pixels @ pixels.mT / 600 @ pixels).view_as(x)


def test_networks_are_pickled():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Attention(), nn.Conv2d(3, 3, 1))
    options = {**FOR_SUMS, "fully_quantized": True, "attention_products": True}
    net = calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])
    twin = pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        assert torch.equal(twin(IMAGES), net(IMAGES))
    assert type(twin._as_it_was()[1]) is Attention


def test_ranges_of_joins_are_learned_and_copied():
    net = body(in_place)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.enable_grad():
        finetune(net, [IMAGES[:2]] * 4, iterations_per_epoch=2)
    moved = [name for name, value in net.state_dict().items() if not value.equal(before[name])]
    assert any("quantized_joins" in name for name in moved)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        assert torch.equal(twin(IMAGES), net(IMAGES))


def test_surgery_is_undone(tiny):
    net = calibrate(quantize(tiny, IMAGES[:1], fully_quantized=True, **FOR_SUMS), [IMAGES])
    plain = net._as_it_was()
    assert not any("quantized_joins" in name for name, _ in plain.named_modules())
    assert not any("quantizer" in name for name, _ in plain.named_modules())
