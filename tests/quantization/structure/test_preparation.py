"""Networks that hide or split their convolutions are rewritten without a change of their output."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from adabm_basicsr import AdaBMError, calibrate, finetune, load_checkpoint, quantize
from adabm_basicsr.deployment.freeze import freeze
from adabm_basicsr.quantization.measures.cost import size_bytes
from adabm_basicsr.quantization.structure.preparation import find_preparation, register_preparation

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def trained_statistics(network):
    """Batch normalisation as after training: nothing is zero or one."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def normalised(*between):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        *between,
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
    ]
    return trained_statistics(
        nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 2), nn.BatchNorm2d(8))
    )


def test_batch_norm_is_folded_into_the_layer_before_it():
    network = normalised()
    preparation = find_preparation(network, IMAGES[:1], fold=True)
    assert preparation.folded == [("0", "1"), ("3", "4"), ("5", "6")]
    prepared = preparation.apply(copy.deepcopy(network))
    torch.testing.assert_close(prepared(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())


def test_batch_norm_after_something_else_stays():
    assert find_preparation(normalised(nn.Tanh()), IMAGES[:1], fold=True).folded == [
        ("4", "5"),
        ("6", "7"),
    ]


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "fresh"])
def test_batch_norm_of_an_output_that_is_used_twice_stays(trained):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = (
                nn.Conv2d(3, 8, 1),
                nn.BatchNorm2d(8),
                nn.Conv2d(8, 3, 1),
            )

        def forward(self, x):
            x = self.conv(x)
            return self.last(self.norm(x) + x)

    network = Branching().eval()
    assert not find_preparation(
        trained_statistics(network) if trained else network, IMAGES[:1], fold=True
    )


def test_batch_norm_is_folded_in_a_network_that_changes_its_input_in_place():
    class Centring(nn.Sequential):
        def forward(self, x):
            x -= 0.4
            return super().forward(x)

    assert find_preparation(Centring(*normalised()).eval(), IMAGES[:1], fold=True).folded == [
        ("0", "1"),
        ("3", "4"),
        ("5", "6"),
    ]


NORMALISATIONS = [
    nn.utils.weight_norm,
    nn.utils.spectral_norm,
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("normalise", NORMALISATIONS, ids=lambda n: f"{n.__module__}.{n.__name__}")
def test_normalisation_of_weights_is_baked_in(normalise, tmp_path):
    def network():
        layers = [
            normalise(nn.Conv2d(3, 8, 3)),
            nn.ReLU(),
            normalise(nn.Conv2d(8, 8, 3)),
            nn.Conv2d(8, 3, 1),
        ]
        return nn.Sequential(*layers).eval()

    torch.manual_seed(0)
    trained, options = network().train(), {"fully_quantized": True, "w_bits": 8, "a_bits": 8}
    for _ in range(20):
        trained(IMAGES)  # spectral normalisation comes to know the weights by it
    trained.eval()
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    net = load_checkpoint(quantize(network(), IMAGES[:1], **options), tmp_path / "plain.pth")
    finetune(calibrate(net, [IMAGES]), [IMAGES] * 3)
    assert not any(parameter.requires_grad for parameter in net.base_parameters())
    with torch.no_grad():
        with net.full_precision():
            torch.testing.assert_close(net(IMAGES), trained(IMAGES))
        torch.testing.assert_close(net(IMAGES), trained(IMAGES), atol=0.05, rtol=0)
        assert torch.equal(freeze(net)(IMAGES), net(IMAGES))
    assert size_bytes(net) < 0.5 * net.full_precision_bytes()


@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_plain_checkpoints_keep_the_layout_of_the_unprepared_network(recipe, tmp_path):
    network = normalised()
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    blank = nn.Sequential(*[copy.deepcopy(layer) for layer in normalised()])
    for parameter in blank.parameters():
        nn.init.ones_(parameter)
    net = quantize(blank, IMAGES[:1], fully_quantized=True, recipe=recipe)
    assert bool(net.preparation) is (recipe == "best")
    load_checkpoint(net, tmp_path / "plain.pth")
    with torch.no_grad(), net.full_precision():
        torch.testing.assert_close(net(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(AdaBMError, match="holds no weights"):
        load_checkpoint(net, tmp_path / "empty.pth")


def test_own_modules_can_be_registered():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) / 10)

        def forward(self, x):
            return nn.functional.conv2d(x, self.kernel, padding=1)

    @register_preparation(Hidden)
    def rewrite(hidden):
        conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        conv.weight = hidden.kernel
        return conv

    network = nn.Sequential(nn.Conv2d(3, 8, 1), Hidden(), Hidden(), nn.Conv2d(8, 3, 1))
    net = quantize(network, IMAGES[:1])
    assert list(net.layers()) == ["1", "2"]
    with torch.no_grad(), net.full_precision():
        torch.testing.assert_close(net(IMAGES), network(IMAGES))


def compiled(module):
    return torch.compile(module, backend="eager")


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 3))

    def forward(self, x):
        return self[2](self[1](self[0](x)))


class CompiledLayer(Plain):
    def __init__(self):
        super().__init__()
        self[1] = compiled(nn.Sequential(compiled(self[1])))


class CompiledCall(Plain):
    def __init__(self):
        super().__init__()
        self.compile(backend="eager")
        self[1].compile(backend="eager")


class CompiledForward(Plain):
    def __init__(self):
        super().__init__()
        self.forward = compiled(self.forward)


@pytest.mark.parametrize(
    "make", [CompiledLayer, CompiledCall, CompiledForward, lambda: compiled(Plain())]
)
def test_compiled_networks_are_quantized_as_if_they_were_not(make):
    outputs = []
    for kind in (Plain, make):
        torch.manual_seed(0)
        net = calibrate(quantize(kind(), IMAGES[:1], recipe="best", w_bits=4), [IMAGES])
        with torch.no_grad():
            outputs.append(net(IMAGES))
    assert torch.equal(*outputs)


def test_checkpoints_of_compiled_networks_fit(tmp_path):
    torch.manual_seed(0)
    network = compiled(Plain())
    state = network.state_dict()
    torch.save(state, tmp_path / "whole.pth")
    net = load_checkpoint(quantize(Plain(), IMAGES[:1]), tmp_path / "whole.pth")
    assert torch.equal(net.base_state()["0.weight"], state["_orig_mod.0.weight"])

    inner = CompiledLayer()
    torch.save(inner.state_dict(), tmp_path / "inner.pth")
    net = load_checkpoint(quantize(CompiledLayer(), IMAGES[:1]), tmp_path / "inner.pth")
    assert "1.0.weight" in dict(net.network.named_parameters())
    assert net.base_state().keys() == inner.state_dict().keys()


def test_lazy_layers_get_their_weights():
    network = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyConv2d(8, 3), nn.LazyConv2d(3, 3))
    net = quantize(network, IMAGES[:1])
    assert net.layers()["1"].weight.shape == (8, 8, 3, 3)


def test_what_cannot_be_copied_is_named():
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    network[1].lock = threading.Lock()
    with pytest.raises(AdaBMError, match=r"^Sequential cannot be copied: 1\.lock: TypeError: "):
        quantize(network, IMAGES[:1])


def test_a_network_that_keeps_what_it_computed_is_copied():
    class Keeping(Plain):
        def forward(self, x):
            self.kept = super().forward(x)
            return self.kept

    net = calibrate(quantize(Keeping(), IMAGES[:1], recipe="best"), [IMAGES])
    output = net(IMAGES)
    assert net.network.kept.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(freeze(net)(IMAGES), output)


def test_what_copies_lose_is_rejected():
    class Slotted(nn.ReLU):
        __slots__ = ("strength",)

    with pytest.raises(AdaBMError, match=r"^1 \(Slotted\) keeps 'strength' in __slots__"):
        quantize(nn.Sequential(nn.Conv2d(3, 3, 3), Slotted()), IMAGES[:1])
