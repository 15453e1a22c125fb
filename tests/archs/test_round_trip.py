"""Every architecture, without trained weights: quantized, fine-tuned, saved and loaded.

What of each is quantized is tested too.
"""

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, VIDEO_ARCHITECTURES
from basicsr.utils.registry import ARCH_REGISTRY

from adabm_basicsr import AdaBMError, calibrate, finetune, load_checkpoint, save_checkpoint
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.archs.catalogue import REFUSED
from adabm_basicsr.deployment.packed import load_packed, save_packed
from adabm_basicsr.quantization.measures.coverage import measure_coverage

OURS = {"AdaBMNetwork", "Spandrel", "RDN", "SRResNet"}


def network(name, **options):
    torch.manual_seed(0)
    return AdaBMNetwork(network=dict(ARCHITECTURES[name]), recipe="best", **options)


def images(net, count=2, size=(20, 22), seed=0):
    """Smooth images of a size that no window divides."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, net.in_channels, 6, 6, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)


def sqnr(net, batch):
    """Of what the network adds to the interpolated image, in dB."""
    with torch.no_grad():
        output = net(batch)
        with net.full_precision():
            teacher = net(batch)
    added = teacher - F.interpolate(batch, size=teacher.shape[2:], mode="bilinear")
    return 10 * torch.log10(added.square().mean() / (output - teacher).square().mean())


def each_architecture():
    """Those after the first of a type are other scales and tails of it, and left to CI."""
    found = []
    types = set()
    for name, options in ARCHITECTURES.items():
        marks = [pytest.mark.slow] if options["type"] in types else []
        found.append(pytest.param(name, marks=marks))
        types.add(options["type"])
    return found


@pytest.mark.parametrize("fully_quantized", [False, True], ids=["body", "full"])
@pytest.mark.parametrize("name", each_architecture())
def test_round_trip(name, fully_quantized, tmp_path):
    options = {"w_bits": 8, "a_bits": 8, "fully_quantized": fully_quantized}
    net = network(name, **options)
    batches = [images(net, seed=seed) for seed in range(2)]
    calibrate(net, batches)
    finetune(net, batches, iterations_per_epoch=1)
    assert sqnr(net, batches[0]) >= 35
    save_checkpoint(net, tmp_path / "net.pth")
    torch.manual_seed(1)
    again = load_checkpoint(network(name, **options), tmp_path / "net.pth")
    save_packed(net, tmp_path / "net.safetensors")
    unpacked = load_packed(tmp_path / "net.safetensors")
    with torch.no_grad():
        expected = net(batches[1])
        assert torch.equal(again(batches[1]), expected)
        assert torch.equal(unpacked(batches[1]), expected)


def test_round_trip_with_attention_products(tmp_path):
    options = {"w_bits": 8, "a_bits": 8, "fully_quantized": True, "attention_products": True}
    net = network("SwinIR x2", **options)
    batches = [images(net, seed=seed) for seed in range(2)]
    finetune(calibrate(net, batches), batches, iterations_per_epoch=1)
    assert sqnr(net, batches[0]) >= 35
    save_checkpoint(net, tmp_path / "net.pth")
    again = load_checkpoint(network("SwinIR x2", **options), tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.equal(net(batches[1]), again(batches[1]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_coverage_of_the_whole_network(name):
    coverage = measure_coverage(network(name, fully_quantized=True))
    if "SwinIR" in name:
        assert coverage.macs >= 0.8
        assert "attention_products" in coverage.warning()
        coverage = measure_coverage(network(name, fully_quantized=True, attention_products=True))
    assert coverage.macs >= 0.95
    assert coverage.warning() is None


def test_every_architecture_of_basicsr_is_either_tested_or_refused():
    every = [*ARCHITECTURES.values(), *VIDEO_ARCHITECTURES.values()]
    tested = {options["type"] for options in every}
    registered = {name.removesuffix("_basicsr") for name, _ in ARCH_REGISTRY}
    in_house = {
        name
        for name in registered
        if not ARCH_REGISTRY.get(name).__module__.startswith(("basicsr", "adabm"))
    }
    assert registered - in_house - OURS == (tested | set(REFUSED)) - OURS


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_by_name(name):
    with pytest.raises(
        AdaBMError, match=f"network_g: network: type: {name} can't be quantized here: it "
    ):
        AdaBMNetwork(network={"type": name})
