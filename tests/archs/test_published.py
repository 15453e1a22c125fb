"""Importing quantized checkpoints of the published code."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from adabm_basicsr import calibrate
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.archs.published import import_published
from adabm_basicsr.commands.main import main
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.calibration.clipping import clip
from adabm_basicsr.quantization.network import Stage

COMMON = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 2, "img_range": 255.0}
NETWORKS = {
    "EDSR": {
        **COMMON,
        "type": "EDSR",
        "upscale": 2,
        "res_scale": 1.0,
        "rgb_mean": [0.4488, 0.4371, 0.404],
    },
    "EDSR x4": {
        **COMMON,
        "type": "EDSR",
        "upscale": 4,
        "res_scale": 1.0,
        "rgb_mean": [0.0, 0.0, 0.0],
        "num_block": 1,
    },
    "EDSR x3": {
        **COMMON,
        "type": "EDSR",
        "upscale": 3,
        "res_scale": 0.5,
        "rgb_mean": [0.5, 0.25, 0.125],
    },
    "RDN": {**COMMON, "type": "RDN", "upscale": 2, "num_conv": 3, "num_grow_ch": 6},
    "RDN x3": {
        **COMMON,
        "type": "RDN",
        "upscale": 3,
        "num_conv": 2,
        "num_grow_ch": 5,
        "num_block": 3,
    },
    "RDN x4": {
        **COMMON,
        "type": "RDN",
        "upscale": 4,
        "num_conv": 1,
        "num_grow_ch": 4,
        "num_block": 1,
    },
    "SRResNet": {**COMMON, "type": "SRResNet", "upscale": 4},
    "SRResNet x2": {**COMMON, "type": "SRResNet", "upscale": 2, "num_block": 1},
    "SRResNet x3": {**COMMON, "type": "SRResNet", "upscale": 3, "num_block": 3},
}


def ready_network(network, **options):
    """A calibrated and clipped network of ours, each learned number different."""
    torch.manual_seed(0)
    net = AdaBMNetwork(network=network, recipe="paper", **options)
    images = torch.rand(4, 3, 12, 12)
    clip(calibrate(net, [images]), images)
    with torch.no_grad():
        for layer in net.layers().values():
            if layer.input_quantizer.adaptive:
                layer.input_quantizer.layer_factor.add_(0.3 * torch.randn(1))
    return net


def to_published(net, network):
    """State dict of ``net`` in the published layout."""
    names = [
        (r"^network\.", ""),
        (r"input_quantizer\.(lower|upper)$", r"\1_a"),
        (r"input_quantizer\.layer_factor$", "measure_layer"),
        (r"weight_quantizer\.upper$", "upper_w"),
        (r"^image_mapping\.lower$", "measure_l"),
        (r"^image_mapping\.upper$", "measure_u"),
    ]
    if network["type"] == "EDSR":
        names += [
            (r"^conv_first\.", "head.0."),
            (r"^conv_after_body\.", f"body.{network['num_block']}."),
        ]
        names += [(r"^upsample\.", "tail.0."), (r"^conv_last\.", "tail.1.")]
    state = {}
    for key, value in net.state_dict().items():
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    del state["layer_bits"], state["stage"]
    if any(network.get("rgb_mean", [])):
        shift = 255 * torch.tensor(network["rgb_mean"])
        for name, sign in (("sub_mean", -1), ("add_mean", 1)):
            state[f"{name}.weight"], state[f"{name}.bias"] = (
                torch.eye(3).view(3, 3, 1, 1),
                sign * shift,
            )
    return state


@pytest.fixture
def published(tmp_path):
    """A fully quantized RDN in the published layout, to be spoilt, and the function that saves and imports it."""
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
    assert torch.equal(output.output, expected.output) and torch.equal(output.bits, expected.bits)


def test_wrapped_state_with_prefix(published):
    state, run = published
    expected = run().state
    wrapped = run({"params": {f"module.{key}": value for key, value in state.items()}}).state
    assert all(torch.equal(wrapped[key], value) for key, value in expected.items())


def test_bits_are_those_that_are_told(published):
    net = published[1](w_bits=6, a_bits=5).net
    plan = net.plan.layers
    assert (plan["GFF.0"].w_bits, plan["GFF.0"].a_bits, plan["UPNet.0"].w_bits) == (6, 5, 8)


@pytest.mark.parametrize(
    "arguments, message",
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


def spoil(state, kind):
    """What a file that can't be imported holds, and how the error ends."""
    if kind == "ours":
        return {
            **state,
            "layer_bits": torch.zeros(1),
        }, "this is a quantized checkpoint of ours already"
    if kind == "full precision":
        plain = {key: value for key, value in state.items() if key.endswith(("weight", "bias"))}
        return (
            plain,
            "no layer has lower_a: a full-precision checkpoint; adabm-basicsr train quantizes one",
        )
    if kind == "unknown layout":
        other = {f"generator.{key}": value for key, value in state.items()}
        return (
            other,
            "unknown layout, it starts with generator.SFENet1.weight, generator.SFENet1.bias, generator.",
        )
    if kind == "no upsampler":
        cut = {key: value for key, value in state.items() if not key.startswith("UPNet")}
        return cut, "UPNet.0.weight is missing"
    if kind == "no range":
        cut = {key: value for key, value in state.items() if key != "RDBs.1.LFF.upper_w"}
        return cut, "the checkpoint doesn't fit published RDN: 1 missing (RDBs.1.LFF.upper_w)"
    if kind == "left over":
        return {
            **state,
            "extra.weight": torch.zeros(1),
        }, "published RDN: 1 unexpected (extra.weight)"
    if kind == "shape":
        return {**state, "measure_l": torch.zeros(2)}, "measure_l is (2,) instead of (1,)"
    if kind == "no weights":
        return {"epoch": 3}, "holds no weights"
    if kind == "no convolution":
        return {
            **state,
            "SFENet1.weight": torch.zeros(3),
        }, "SFENet1.weight is not that of a convolution"
    return {
        **state,
        "GFF.0.upper_a": torch.tensor([float("nan")]),
    }, "GFF.0.upper_a holds NaN or infinite values"


KINDS = [
    "ours",
    "full precision",
    "unknown layout",
    "no upsampler",
    "no range",
    "left over",
    "shape",
    "no weights",
]


@pytest.mark.parametrize("kind", [*KINDS, "no convolution", "nan"])
def test_file_that_cannot_be_imported(published, kind):
    state, run = published
    content, message = spoil(state, kind)
    with pytest.raises(AdaBMError) as error:
        run(content)
    assert (
        message in str(error.value)
        and "published.pt" in str(error.value)
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize(
    "key, value, message",
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


def test_command_writes_what_the_test_command_takes(workspace, capsys):
    network = {**NETWORKS["EDSR"], "num_feat": 8}
    torch.save(to_published(ready_network(network, fully_quantized=True), network), "published.pt")
    main(["import", "published.pt", "-o", "imported/edsr.pth"])
    assert capsys.readouterr().out.splitlines() == [
        "published.pt: EDSR x2 (num_block 2, num_feat 8, res_scale 1), fully quantized, taken as w_bits 4, a_bits 4 "
        "(the file doesn't hold its bits)",
        "written: imported/edsr.pth, and imported/edsr.yml with its network_g and path for an option file "
        "(adabm-basicsr test)",
    ]
    sections = yaml.safe_load(Path("imported/edsr.yml").read_text())
    workspace.test(**sections)
    assert (workspace.root / "results" / "tiny_test" / "metrics.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gone.pt", "-o", "out.pth"], "checkpoint gone.pt does not exist"),
        (
            ["published.pt", "-o", "out.yml"],
            "--out: out.yml must be another file than the published one, and end in",
        ),
        (["a.pth", "-o", "a.pth"], "--out: a.pth must be another file than the published one"),
        (["published.pt", "-o", "out.pth"], "checkpoint published.pt cannot be read"),
        (
            ["published.pt", "-o", "out.pth", "--w-bits", "9"],
            "w_bits: 9 is out of range; valid: 2 to 8",
        ),
    ],
)
def test_command_fails_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("published.pt").write_text("no checkpoint")
    with pytest.raises(SystemExit) as stopped:
        main(["import", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published.pt"]


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
    # On average over the images: in one of them a single rounding that falls the other way grows to 2 %.
    assert np.abs(details.output.numpy() * 255 - expected).mean() < 0.01 * np.abs(expected).mean()


def test_command_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(to_published(ready_network(NETWORKS["EDSR"]), NETWORKS["EDSR"]), "published.pt")
    page = Path(__file__).parents[2] / "docs" / "moving.md"
    (command,) = re.findall(r"^adabm-basicsr (.*)$", page.read_text(), re.M)
    main(shlex.split(command))
    assert yaml.safe_load(Path("net.yml").read_text())["network_g"]["recipe"] == "paper"
