"""Packed files: bits, size, the same network again, and files that aren't what they should be."""

import copy
import json

import pytest
import torch
from conftest import TINY_EDSR
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, finetune, quantize, save_checkpoint
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.deployment.load import load_network
from adabm_basicsr.deployment.packed import (
    CHECKSUM,
    DESCRIPTION_KEY,
    checksum,
    load_packed,
    pack,
    pack_bits,
    read_packed,
    save_packed,
    unpack,
    unpack_bits,
)

pytestmark = pytest.mark.numeric

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def network(**options):
    torch.manual_seed(0)
    return AdaBMNetwork(network=dict(TINY_EDSR), **options)


def quantized(**options):
    net = calibrate(network(**options), [IMAGES])
    if net.config.finetuning.phases:
        finetune(net, [IMAGES] * 4, iterations_per_epoch=1)
    return net


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Bytes of a packed file."""
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    save_packed(quantized(), path)
    return path.read_bytes()


@pytest.fixture
def packed(content, tmp_path):
    """A packed file that a test may change."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    return path


@given(
    st.integers(2, 8).flatmap(
        lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))
    )
)
def test_bits_come_back(case):
    bits, values = case
    levels = torch.tensor(values, dtype=torch.uint8)
    packed = pack_bits(levels, bits)
    assert packed.numel() == -(-len(values) * bits // 8)
    assert torch.equal(unpack_bits("x", packed, bits, levels.shape), levels)


@pytest.mark.parametrize("recipe", ["paper", "best", "static"])
@pytest.mark.parametrize("bits", [3, 4, 8, 32])
def test_output_is_the_same_to_the_bit(recipe, bits, tmp_path):
    net = quantized(recipe=recipe, w_bits=bits, a_bits=4, fully_quantized=True)
    save_packed(net, tmp_path / "net.safetensors")
    torch.manual_seed(1)
    again = load_packed(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES))
        assert torch.equal(again.bits_for(IMAGES), net.bits_for(IMAGES))


def test_weights_alone_quantized(tmp_path):
    net = quantized(w_bits=4, a_bits=32)
    save_packed(net, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(load_packed(tmp_path / "net.safetensors")(IMAGES), net(IMAGES))


@pytest.mark.parametrize("excluded", ["first", "second"])
@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_parameters_that_a_quantized_layer_shares_with_another(tiny, excluded, recipe):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(tiny)
            self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

        def forward(self, x):
            return self.second(self.first(self.network(x)))

    net, again = (
        quantize(Tied(), IMAGES[:1], recipe=recipe, fully_quantized=True, exclude=(excluded,))
        for _ in range(2)
    )
    calibrate(net, [IMAGES])
    unpack(again, *pack(net))
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES))


class Spectral(nn.Module):
    """Weighs frequencies by complex parameters, and has a buffer of a kind."""

    def __init__(self, dtype, size):
        super().__init__()
        self.first, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.weight = nn.Parameter(torch.randn(3, 24, 13, dtype=torch.cfloat))
        values = torch.rand(size, dtype=torch.float64) * 3
        self.register_buffer("kept", (values * 1.5j if dtype.is_complex else values).to(dtype))

    def forward(self, x):
        x = self.first(x)
        x = torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])
        return self.last(x + self.kept.sum().abs().float())


def spectral(dtype, size):
    return quantize(Spectral(dtype, size), IMAGES[:1], size_multiple=24, fully_quantized=True)


KINDS = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


@pytest.mark.parametrize("size", [0, 5, 5_000])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_tensors_of_every_kind_come_back_to_the_bit(dtype, size):
    net, again = (spectral(dtype, size) for _ in range(2))
    calibrate(net, [IMAGES])
    unpack(again, *pack(net))
    assert torch.equal(again.network.weight, net.network.weight)
    assert torch.equal(again.network.kept, net.network.kept)
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES))


def test_tensors_that_a_packed_file_cannot_hold():
    net = calibrate(spectral(torch.float32, 5), [IMAGES])
    for value in (
        torch.tensor([-float("inf")] * 5),
        torch.tensor([float("nan")] * 5),
        torch.ones(5).to_sparse(),
    ):
        net.network.kept = value
        with pytest.raises(AdaBMError, match=r"network\.kept: a packed file can't hold"):
            pack(net)


def test_small_tensors_of_other_kinds_are_rejected():
    net, again = (spectral(torch.bool, 5) for _ in range(2))
    tensors, kinds = pack(calibrate(net, [IMAGES]))
    tensors["small.u"][9:14] = 2  # after the bits of two layers and the stage
    with pytest.raises(AdaBMError, match=r"network\.kept isn't of the type bool"):
        unpack(again, tensors, kinds)


def test_a_packed_network_packs_to_the_same_file(packed, content):
    save_packed(load_packed(packed), packed)
    assert packed.read_bytes() == content


def test_ingredients_that_were_switched_come_back(tmp_path):
    net = quantized(
        ingredients={"image_bits": [-2, 1], "phases": ["distillation"], "lr_decay": 0.5}, a_bits=5
    )
    save_packed(net, tmp_path / "net.safetensors")
    again = load_packed(tmp_path / "net.safetensors")
    assert again.config.arithmetic.image_bits == (-2, 1)
    assert again.config.finetuning.lr_decay == 0.5


def test_four_bit_layers_take_an_eighth_and_little_more(tmp_path):
    big = {**TINY_EDSR, "num_feat": 64, "num_block": 4}
    torch.manual_seed(0)
    net = AdaBMNetwork(network=big, ingredients={"allocate": False}, w_bits=4, a_bits=4)
    save_packed(calibrate(net, [IMAGES]), tmp_path / "net.safetensors")
    layers = [net.network.get_submodule(name) for name in net.plan.layers]
    full = sum(4 * (layer.weight.numel() + layer.bias.numel()) for layer in layers)
    rest = sum(4 * parameter.numel() for parameter in net.base_parameters()) - full  # head and tail
    header = 3500  # of which the description of the network, once
    assert (tmp_path / "net.safetensors").stat().st_size - rest - header <= 0.13 * full


@pytest.mark.parametrize("recipe", ["fast", "static", "paper"])
def test_float_weights_are_there_for_images_in_full_precision(recipe, tmp_path):
    net = calibrate(network(recipe=recipe, full_precision_images=0.5), [IMAGES])
    save_packed(net, tmp_path / "net.safetensors")
    loaded = load_packed(tmp_path / "net.safetensors")
    assert loaded.in_full_precision(IMAGES).tolist() == net.in_full_precision(IMAGES).tolist()
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), net(IMAGES))
    save_packed(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "net.safetensors"
    ).read_bytes()
    with_integers = tmp_path / "integers.safetensors"
    save_packed(calibrate(network(recipe=recipe), [IMAGES]), with_integers)
    added = (tmp_path / "net.safetensors").stat().st_size - with_integers.stat().st_size
    weights = sum(layer.weight.numel() for layer in net.layers().values())
    assert 4 * weights <= added < 4 * weights + 2000


def test_small_tensors_are_exact_in_two_bytes_where_they_may_be(packed):
    description, tensors = read_packed(packed)
    assert tensors["small.b"].dtype is torch.bfloat16
    assert tensors["small.f"].dtype is torch.float32
    assert {"b", "f", "u"} <= set(description["kinds"])


def test_checkpoints_say_how_their_network_is_built(tmp_path):
    net = quantized(recipe="paper", exclude=["body.0.*"], layers={"body.1.*": {"a_bits": 5}})
    save_checkpoint(net, tmp_path / "net.pth")
    again = load_network(tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES))
    assert again.description == net.description


def test_only_calibrated_networks_built_from_options_are_packed(tmp_path, tiny):
    with pytest.raises(AdaBMError, match="has not been quantized yet"):
        save_packed(network(), tmp_path / "net.safetensors")
    with pytest.raises(AdaBMError, match="built from options"):
        save_packed(calibrate(quantize(tiny, IMAGES[:1]), [IMAGES]), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def rewritten(path, change_description=None, change_tensors=None):
    description, _ = read_packed(path)
    tensors = load_file(path)
    if change_description:
        change_description(description)
    if change_tensors:
        change_tensors(tensors)
    if isinstance(description, dict):
        description[CHECKSUM] = checksum(description, tensors)
    save_file(tensors, path, {DESCRIPTION_KEY: json.dumps(description)})


def first_weights(tensors):
    return next(key for key in tensors if key.startswith("levels."))


BAD_DESCRIPTIONS = {
    "has format 7": lambda d: d.update(format=7),
    "'Nonsense' is not registered": lambda d: d["network"].update(type="Nonsense"),
    "network or options are missing": lambda d: d.pop("options"),
    "unknown key 'w_bit'": lambda d: d["options"].update(w_bit=3),
    "is missing or of another size": lambda d: d["network"].update(num_feat=12),
}
BAD_TENSORS = {
    "missing or of another size": lambda t: t.pop(first_weights(t)),
    "NaN or infinite": lambda t: t["small.f"].fill_(float("nan")),
    "holds more than the network": lambda t: t.update(extra=torch.zeros(3)),
    "is missing or of another size": lambda t: t.update({"small.f": t["small.f"][:-1].clone()}),
    "has w_bits 3, a_bits 4, adaptive; the options say w_bits 4": lambda t: t["small.u"][:1].fill_(
        3
    ),
    "is of a stage 9": lambda t: t["small.u"][16:17].fill_(9),
    "no ranges yet": lambda t: t["small.u"][16:17].fill_(0),
    "body.0.conv1 has weights of 0 bits": lambda t: t["small.u"][17:18].fill_(0),
    "small.f is of another type or shape": lambda t: t.update(
        {"small.f": t["small.f"].double() + 1e-12}
    ),
}


@pytest.mark.parametrize("text", BAD_DESCRIPTIONS)
def test_wrong_descriptions_are_rejected(text, packed):
    rewritten(packed, BAD_DESCRIPTIONS[text])
    with pytest.raises(AdaBMError, match=text):
        load_packed(packed)


def test_a_threshold_that_is_no_complexity_is_rejected():
    net = quantized(recipe="static", full_precision_images=0.5)
    tensors, kinds = pack(net)
    tensors["full_precision_above"] = torch.tensor(float("nan"))
    with pytest.raises(AdaBMError, match="full_precision_above is no complexity"):
        unpack(net, tensors, kinds)


@pytest.mark.parametrize("text", BAD_TENSORS)
def test_wrong_tensors_are_rejected(text, packed):
    rewritten(packed, None, BAD_TENSORS[text])
    with pytest.raises(AdaBMError, match=text):
        load_packed(packed)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files_are_rejected(share, packed, content):
    packed.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(AdaBMError, match="truncated or corrupt"):
        load_packed(packed)


def test_files_of_others_are_rejected(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(AdaBMError, match="no packed file of adabm-basicsr"):
        load_network(tmp_path / "other.safetensors")
    with pytest.raises(AdaBMError, match="does not exist"):
        load_network(tmp_path / "missing.safetensors")
    torch.save({"params": {"a": torch.zeros(3)}}, tmp_path / "plain.pth")
    with pytest.raises(AdaBMError, match="doesn't say how its network is built"):
        load_network(tmp_path / "plain.pth")
