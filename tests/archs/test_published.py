"""Importing quantized checkpoints of the published code."""

import numpy as np
import pytest
import torch
from published_files import NETWORKS, ready_network, to_published

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.archs.published import import_published
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.network import Stage

pytestmark = pytest.mark.numeric


@pytest.fixture
def published(tmp_path):
    """A fully quantized RDN in the published layout, and the function that saves and imports it."""
    state = to_published(ready_network(NETWORKS["RDN"], fully_quantized=True), NETWORKS["RDN"])

    def run(content=state, **arguments):
        torch.save(content, tmp_path / "published.pt")
        return import_published(tmp_path / "published.pt", **arguments)

    return state, run


@pytest.mark.parametrize("fully_quantized", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(tmp_path, name, fully_quantized):
    network = NETWORKS[name]
    net = ready_network(network, fully_quantized=fully_quantized)
    path = tmp_path / "published.pt"
    torch.save(to_published(net, network), path)
    imported = import_published(path, res_scale=network.get("res_scale", 1.0))
    assert imported.network == network
    assert imported.options == {
        "w_bits": 4,
        "a_bits": 4,
        "recipe": "paper",
        "fully_quantized": fully_quantized,
    }
    again = AdaBMNetwork(network=imported.network, **imported.options)
    again.load_state_dict(imported.state)
    assert again.stage == Stage.CLIPPED
    image = torch.rand(2, 3, 14, 10)
    with torch.no_grad():
        expected, output = net(image, details=True), again(image, details=True)
    assert torch.equal(output.output, expected.output)
    assert torch.equal(output.bits, expected.bits)


def test_wrapped_state_with_prefix(published):
    state, run = published
    expected = run().state
    wrapped = run({"params": {f"module.{key}": value for key, value in state.items()}}).state
    assert all(torch.equal(wrapped[key], value) for key, value in expected.items())


def test_bits_are_those_that_are_given(published):
    net = published[1](w_bits=6, a_bits=5).net
    plan = net.plan.layers
    assert (plan["GFF.0"].w_bits, plan["GFF.0"].a_bits, plan["UPNet.0"].w_bits) == (6, 5, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w_bits": 1}, "w_bits: 1 is out of range; valid: 2 to 8"),
        ({"w_bits": 32}, "w_bits: 32 is out of range; valid: 2 to 8"),
        ({"a_bits": 2}, "a_bits: 2 is out of range; valid: 3 to 8"),
        ({"a_bits": 4.5}, "a_bits: 4.5 is out of range; valid: 3 to 8"),
        ({"res_scale": 0.1}, "published.pt: res_scale: RDN has none"),
        ({"res_scale": float("nan")}, "published.pt: res_scale: nan is not a positive number"),
    ],
)
def test_numbers_out_of_range(published, arguments, message):
    with pytest.raises(AdaBMError) as error:
        published[1](**arguments)
    assert message in str(error.value)


def without(state, beginning):
    return {key: value for key, value in state.items() if not key.startswith(beginning)}


def in_full_precision(state):
    return {key: value for key, value in state.items() if key.endswith(("weight", "bias"))}


def below_generator(state):
    return {f"generator.{key}": value for key, value in state.items()}


def with_tensor(key, value):
    return lambda state: {**state, key: value}


# How a state is spoilt, and what the error says.
SPOILT = {
    "ours": (
        with_tensor("layer_bits", torch.zeros(1)),
        "this is a quantized checkpoint of ours already",
    ),
    "full precision": (
        in_full_precision,
        "no layer has lower_a: a full-precision checkpoint; adabm-basicsr train quantizes one",
    ),
    "unknown layout": (
        below_generator,
        "unknown layout, it starts with generator.SFENet1.weight, generator.SFENet1.bias, ",
    ),
    "no upsampler": (
        lambda state: without(state, "UPNet"),
        "UPNet.0.weight is missing",
    ),
    "no range": (
        lambda state: without(state, "RDBs.1.LFF.upper_w"),
        "the checkpoint doesn't fit published RDN: 1 missing (RDBs.1.LFF.upper_w)",
    ),
    "left over": (
        with_tensor("extra.weight", torch.zeros(1)),
        "published RDN: 1 unexpected (extra.weight)",
    ),
    "shape": (
        with_tensor("measure_l", torch.zeros(2)),
        "measure_l is (2,) instead of (1,)",
    ),
    "no weights": (
        lambda state: {"epoch": 3},
        "holds no weights",
    ),
    "no convolution": (
        with_tensor("SFENet1.weight", torch.zeros(3)),
        "SFENet1.weight is not that of a convolution",
    ),
    "nan": (
        with_tensor("GFF.0.upper_a", torch.tensor([float("nan")])),
        "GFF.0.upper_a holds NaN or infinite values",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_file_that_cannot_be_imported(published, kind):
    state, run = published
    spoil, message = SPOILT[kind]
    with pytest.raises(AdaBMError) as error:
        run(spoil(state))
    assert message in str(error.value)
    assert "published.pt" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "sub_mean.weight",
            torch.full((3, 3, 1, 1), 2.0),
            "sub_mean.weight and sub_mean.bias are no plain shift",
        ),
        ("add_mean.bias", torch.ones(3), "sub_mean and add_mean are not opposite"),
    ],
)
def test_mean_shift_that_is_none(tmp_path, key, value, message):
    network = NETWORKS["EDSR"]
    state = to_published(ready_network(network), network)
    torch.save({**state, key: value}, tmp_path / "published.pt")
    with pytest.raises(AdaBMError, match=message):
        import_published(tmp_path / "published.pt")


@pytest.mark.shared
@pytest.mark.parametrize("tag", ["nonfq", "fq"])
@pytest.mark.parametrize("arch", ["edsr", "rdn", "srresnet"])
def test_published_outputs(shared, arch, tag):
    reference = shared / "reference"
    imported = import_published(reference / f"published_tiny_{arch}_{tag}.pt")
    assert imported.options["fully_quantized"] == (tag == "fq")
    outputs = np.load(reference / "published_tiny_outputs.npz")
    image = torch.from_numpy(outputs["test_lr_255"]) / 255
    with torch.no_grad():
        details = imported.net(image, details=True)
        with imported.net.full_precision():
            full = imported.net(image).numpy() * 255
    expected, expected_full = outputs[f"{arch}/{tag}/sr"], outputs[f"{arch}/{tag}/fp_sr"]
    np.testing.assert_allclose(full, expected_full, rtol=0, atol=1e-4 * np.abs(expected_full).max())
    np.testing.assert_array_equal(details.bits.numpy(), outputs[f"{arch}/{tag}/fab"])
    # On average over the images: in one of them, a single rounding that falls the other way grows
    # to 2 %.
    assert np.abs(details.output.numpy() * 255 - expected).mean() < 0.01 * np.abs(expected).mean()
