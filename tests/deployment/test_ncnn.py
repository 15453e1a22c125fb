"""Networks in ncnn compute what the simulation does, or are refused by the layer's name."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from agreement import THREADS, quantized, smooth
from conftest import TINY_EDSR
from engine_networks import EACH_NETWORK, NETWORKS
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, load_network, quantize
from adabm_basicsr.deployment.ncnn.export import save_ncnn
from adabm_basicsr.deployment.ncnn.files import stored_layers, without_winograd
from adabm_basicsr.deployment.ncnn.layers import (
    Layer,
    bin_bytes,
    int8_weight,
    param_text,
    with_splits,
)
from adabm_basicsr.deployment.ncnn_network import NcnnNetwork
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

ncnn = pytest.importorskip("ncnn")

FOR_NCNN = {"engine": "ncnn", "w_bits": 8, "a_bits": 8, "recipe": "fast"}


def check(net, path, least=50.0):
    network = load_network(path, threads=THREADS)
    for size in ((24, 26), (17, 33), (1, 1)):
        image = smooth(2, net.in_channels, size)
        with torch.no_grad():
            expected = net(image)
        assert pixel_psnr(network(image), expected) >= least, size


@pytest.mark.parametrize("name", EACH_NETWORK)
def test_architectures_agree(name, tmp_path):
    net = quantized(NETWORKS[name], **FOR_NCNN)
    written = save_ncnn(net, tmp_path / "net.param")
    assert len(written.integers) == len(net.layers())
    assert not written.floats
    check(net, tmp_path / "net.param")


class Body(nn.Module):
    """A network around ``middle``, which keeps 8 channels and the size."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.middle = middle

    def forward(self, x):
        return F.pixel_shuffle(self.last(self.middle(self.first(x))), 2) + 0.4


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def attention(x):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True) + F.adaptive_max_pool2d(x, 1))


MIDDLES = {
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "grouped": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
    "dilated": lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False),
    "asymmetric kernel": lambda: nn.Conv2d(8, 8, (1, 5), padding=(0, 2)),
    "strided and transposed": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1)
    ),
    "transposed in groups": lambda: nn.Sequential(
        nn.MaxPool2d(2), nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1, groups=4)
    ),
    "leaky": lambda: nn.Sequential(
        nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU()
    ),
    "prelu": lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8)),
    "batch norm": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)),
    "instance norm": lambda: nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 8, 1)),
    "reflecting": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    "functions": lambda: nn.Sequential(
        nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.ELU(), nn.Tanh(), nn.ReLU6(), nn.Conv2d(8, 8, 1)
    ),
    "attention": lambda: nn.Sequential(Function(attention), nn.Conv2d(8, 8, 1)),
    "split": lambda: Function(
        lambda x: (
            torch.cat(
                [
                    x[:, 3:],
                    x[:, :3] - 0.1,
                ],
                1,
            )
            * 0.7
        )
    ),
    "chunks": lambda: Function(lambda x: torch.cat([*x.chunk(2, 1)][::-1], 1) / x.abs().add(1)),
    "pooled": lambda: Function(
        lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    ),
    "constants": lambda: Function(lambda x: (1 - x) * torch.linspace(0, 1, 8).view(1, 8, 1, 1)),
    "numbers": lambda: Function(lambda x: (x.exp() - x.abs().sqrt()) / 2 + x**2),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_operators_agree(name, tmp_path):
    torch.manual_seed(0)
    network = Body(MIDDLES[name]())
    net = quantize(network, torch.zeros(1, 3, 24, 24), fully_quantized=True, **FOR_NCNN)
    calibrate(net, [smooth(8)])
    written = save_ncnn(net, tmp_path / "net.param")
    assert bool(written.floats) == ("grouped" in name or "transposed" in name)
    network = NcnnNetwork(tmp_path / "net.param")
    image = smooth(1)
    with torch.no_grad():
        assert pixel_psnr(network(image), net(image)) >= 50


def test_what_ncnn_lacks_is_refused_by_name(tmp_path):
    class Cumulated(Body):
        def forward(self, x):
            return super().forward(x).cumsum(3)

    network = Cumulated(nn.Conv2d(8, 8, 1))
    net = quantize(network, torch.zeros(1, 3, 24, 24), **FOR_NCNN)
    calibrate(net, [smooth(8)])
    with pytest.raises(AdaBMError, match=r"ncnn: /network/CumSum: ncnn files hold no CumSum, but "):
        save_ncnn(net, tmp_path / "net.param")
    assert not list(tmp_path.iterdir())


def test_networks_for_other_engines_are_refused(edsr, tmp_path):
    with pytest.raises(AdaBMError, match=r"set network_g: engine: ncnn \(and a_bits: 8\)"):
        save_ncnn(edsr, tmp_path / "net.param")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("ncnn") / "net.param"
    save_ncnn(quantized(TINY_EDSR, **FOR_NCNN), path)
    return path


@pytest.fixture
def files(whole, tmp_path):
    for part in whole.parent.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    return tmp_path / "net.param"


@pytest.mark.parametrize("version", ["1.0.20240820", "1.0.20261020", "unknown"])
def test_pixels_are_the_same_with_and_without_winograd(version, files, monkeypatch):
    image = smooth(1)
    expected = NcnnNetwork(files)(image)
    monkeypatch.setattr(ncnn, "__version__", version)
    torch.testing.assert_close(NcnnNetwork(files)(image), expected)


def test_convolutions_of_integers_alone_do_without_winograd():
    param = "7767517\n2 3\nConvolution a 1 1 x y 0=8 6=9 8=102\nConvolution b 1 1 y z 0=8 6=9\n"
    assert without_winograd(param) == param.replace("8=102", "8=102 31=64")
    kinds = [(layer.name, layer.weights, layer.type) for layer in stored_layers(param)]
    assert kinds == [("a", 9, "int8"), ("b", 9, "float")]


def test_numbers_are_short_enough_for_ncnn(whole):
    for word in whole.read_text().split():
        value = word.partition("=")[2]
        assert all(len(number) < 16 for number in value.split(","))


@pytest.mark.parametrize("suffix", [".param", ".bin", ".json"])
def test_missing_and_damaged_files_are_rejected(suffix, files):
    part = files.with_suffix(suffix)
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(AdaBMError, match=r"damaged|no description"):
        NcnnNetwork(files)
    part.unlink()
    with pytest.raises(AdaBMError, match=f"net{suffix} does not exist"):
        NcnnNetwork(files)


@pytest.mark.parametrize(
    "change", [{"format": 9}, {"size_multiple": "a"}, {"in_channels": None}, {"sha256": 3}]
)
def test_descriptions_of_wrong_kinds_are_rejected(change, files):
    part = files.with_suffix(".json")
    part.write_text(json.dumps({**json.loads(part.read_text()), **change}))
    with pytest.raises(AdaBMError):
        NcnnNetwork(files)


def test_each_taker_gets_a_blob_of_its_own():
    layers = [
        Layer("Input", [], ["x"]),
        Layer("ReLU", ["x"], ["y"]),
        Layer("BinaryOp", ["x", "y"], ["z"], {0: 0}),
    ]
    split = with_splits(layers)
    assert [layer.kind for layer in split] == ["Input", "Split", "ReLU", "BinaryOp"]
    taken = [name for layer in split for name in layer.inputs]
    assert len(taken) == len(set(taken))
    assert param_text(split).splitlines()[:2] == ["7767517", "4 5"]


def test_integers_are_padded_to_four_bytes():
    content = bin_bytes([Layer("Convolution", [], [], {}, [int8_weight(np.arange(5))])])
    assert content == b"\x38\x4b\x0d\x00" + bytes(range(5)) + bytes(3)
