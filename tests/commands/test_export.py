"""The command that writes files to deploy."""

import json
from pathlib import Path

import pytest
import torch
from agreement import agreement, agreement_of_most
from conftest import TINY_EDSR

from adabm_basicsr import calibrate, save_checkpoint
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.commands.main import main
from adabm_basicsr.deployment.engines import EXPORTS
from adabm_basicsr.deployment.load import load_network

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = calibrate(AdaBMNetwork(network=dict(TINY_EDSR)), [IMAGES])
    save_checkpoint(net, "net.pth")
    return net


def test_export_writes_a_packed_file_beside_the_checkpoint(checkpoint, capsys):
    main(["export", "-m", "net.pth", "--format", "packed"])
    assert "written: net.safetensors" in capsys.readouterr().out
    with torch.no_grad():
        assert torch.equal(load_network("net.safetensors")(IMAGES), checkpoint(IMAGES))


def test_export_writes_a_graph_that_upscales(checkpoint, capsys):
    main(["export", "-m", "net.pth", "--format", "onnx", "-o", "deep/net.onnx"])
    assert "written: deep/net.onnx" in capsys.readouterr().out
    with torch.no_grad():
        output = load_network("deep/net.onnx")(IMAGES)
        expected = checkpoint(IMAGES)
    assert agreement(output, expected) >= 38
    assert agreement_of_most(output, expected) >= 100


def test_a_level_or_signed_integers_ask_for_onnx(checkpoint, capsys):
    for option in (["--level", "1"], ["--symmetric"]):
        main(["export", "-m", "net.pth", *option])
        assert "written: net.onnx" in capsys.readouterr().out


def test_quiet_and_json(checkpoint, capsys):
    main(["export", "-m", "net.pth", "--quiet"])
    assert capsys.readouterr() == ("", "")
    main(["export", "-m", "net.pth", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["file"] == "net.safetensors"
    assert 0 < printed["bytes"] == Path("net.safetensors").stat().st_size


def test_an_exported_graph_is_no_checkpoint(checkpoint, capsys):
    main(["export", "-m", "net.pth", "--format", "onnx", "--symmetric", "--level", "1"])
    main(["export", "-m", "net.pth", "-o", "other.onnx"])  # its ending says which format
    with pytest.raises(SystemExit):
        main(["export", "-m", "other.onnx"])
    assert "other.onnx is exported already" in capsys.readouterr().err


def test_files_for_others_say_what_runs_how(workspace, capsys):
    options = {"engine": "portable", "recipe": "static", "w_bits": 7, "a_bits": 8}
    net = AdaBMNetwork(network=dict(TINY_EDSR), fully_quantized=True, **options)
    save_checkpoint(calibrate(net, [IMAGES]), "net.pth")
    main(["export", "-m", "net.pth", "--for", "portable"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("written: net.onnx, 0.0")
    assert lines[1] == "as integers: 8 of 8 convolutions"
    assert lines[2].startswith("weights take 8 bits in the file and use 7 of them at most")
    assert lines[3].startswith("load net.onnx in chaiNNer, vs-mlrt, OpenCV, ")
    main(["inspect", "net.onnx"])
    facts = capsys.readouterr().out.splitlines()[1]
    assert "engine portable, " in facts
    assert "level 1, symmetric False, arithmetic activations uint8 with zero points and a" in facts


BAD = {
    ("-m", "gone.pth"): "checkpoint gone.pth does not exist",
    (
        "-m",
        "net.pth",
        "-o",
        "net.onnx",
        "--format",
        "packed",
    ): "net.onnx must end in .safetensors with --format packed",
    ("-m", "net.pth", "-o", "net.bin"): "net.bin ends in none of .safetensors (packed), .onnx",
    ("-m", "net.safetensors"): "is the model itself",
    (
        "-m",
        "net.pth",
        "--symmetric",
        "--format",
        "packed",
    ): "--symmetric and --level are for --format onnx",
    (
        "-m",
        "net.pth",
        "--level",
        "2",
        "-o",
        "net.safetensors",
    ): "net.safetensors must end in .onnx with --format onnx",
    (
        "-m",
        "net.pth",
        "--for",
        "ncnn",
        "--level",
        "1",
    ): "--for takes no --format, --symmetric or --level",
    ("-m", "net.pth", "--for", "opencv"): "--for: 'opencv' is no engine; valid: openvino (adabm-",
    ("-m", "net.pth", "--tune"): "--tune: it is for files for OpenVINO; add --for openvino",
    ("-m", "net.pth", "--for", "ncnn", "--tune"): "--tune: files for ncnn have one form alone; "
    "valid: --for openvino or --for openvino_uint8",
    ("-m", "net.pth", "--for", "ncnn"): "quantized for engine: openvino",
    ("-m", "net.pth", "--for", "ncnn", "-o", "net.onnx"): "must end in .param with --for ncnn",
}


def test_help_names_engines_and_their_programs(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for engine, export in EXPORTS.items():
        assert f"{engine} ({export.programs})" in shown


@pytest.mark.parametrize("argv", BAD)
def test_mistakes_are_one_line(argv, checkpoint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", *argv])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert BAD[argv] in error
    assert error.count("\n") == 1


def test_images_in_full_precision_are_reported(workspace, capsys):
    net = AdaBMNetwork(network=dict(TINY_EDSR), recipe="static", full_precision_images=0.5)
    save_checkpoint(calibrate(net, [IMAGES]), "net.pth")
    above = f"images of a complexity above {float(net.full_precision_above):.1f}"
    weights = sum(layer.weight.numel() for layer in net.layers().values())
    taken = f"in full precision: {above}; float weights take {4 * weights / 1e6:.3f} MB of the file"
    for choice in (["--format", "packed"], ["--for", "openvino"]):
        main(["export", "-m", "net.pth", *choice])
        assert taken in capsys.readouterr().out.splitlines()
    main(["export", "-m", "net.pth", "--level", "2"])
    left_out = f"left out: the float network for {above}; they run as integers here"
    assert capsys.readouterr().out.splitlines()[1] == left_out
    main(["inspect", "net.safetensors"])
    assert "full precision above complexity" in capsys.readouterr().out
