"""The script for TensorRT, but for TensorRT itself: no machine of CI has a GPU."""

import json
import sys

import onnx
import pytest
import tensorrt_engine
import torch
from tensorrt_engine import integer_share, make_table
from torch import nn

# Stands for trtexec: writes the files that its options name, as TensorRT's documentation has them.
STAND_IN = f"""#!{sys.executable}
import json, sys
options = dict(word.partition("=")[::2] for word in sys.argv[1:])
if "--onnx" in options:
    if "broken" in options["--onnx"]:
        print("[I] Start parsing network model.")
        print("[E] Failed to parse onnx file")
        sys.exit(1)
    open(options["--saveEngine"], "wb").write(bytes(2_000_000))
    kind = "Int8" if "net" in options["--onnx"] else "Half"
    layer = {{
        "Kernel": [3, 3],
        "Weights": {{"Type": kind, "Count": 10}},
        "Outputs": [{{"Dimensions": [1, 3, 8, 8]}}],
    }}
    json.dump({{"Layers": [layer]}}, open(options["--exportLayerInfo"], "w"))
else:
    milliseconds = 2.0 if "net" in options["--loadEngine"] else 5.0
    json.dump([{{"computeMs": milliseconds}}] * 3, open(options["--exportTimes"], "w"))
"""


@pytest.fixture
def run(monkeypatch):
    """Runs the script with some arguments, where programs are looked for in one folder alone."""

    def run_with(*arguments, path):
        monkeypatch.setattr(sys, "argv", ["tensorrt_engine.py", *map(str, arguments)])
        monkeypatch.setenv("PATH", str(path))
        tensorrt_engine.main()

    return run_with


@pytest.fixture
def programs(tmp_path):
    """A folder with a stand-in for trtexec, and nothing else."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "trtexec"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return folder


@pytest.fixture
def float_file(tmp_path):
    """A network of one convolution as ONNX."""
    path = tmp_path / "float.onnx"
    image = (torch.rand(1, 3, 8, 8),)
    torch.onnx.export(nn.Conv2d(3, 3, 3), image, path, dynamo=False, input_names=["image"])
    return path


def test_files_are_built_and_timed(tmp_path, programs, float_file, run, capsys):
    ours = tmp_path / "net.onnx"
    ours.write_bytes(b"")
    out = tmp_path / "out"
    run(ours, "--float", float_file, "--rounds", 2, "--out", out, path=programs)
    shown = capsys.readouterr().out
    table = [line.split("|")[1:-1] for line in shown.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in line] for line in table[2:]] == [
        ["net.onnx", "2.00", "2.50", "100 %", "2.00"],
        ["float_fp16.onnx", "5.00", "1.00", "0 %", "2.00"],
        ["float.onnx", "5.00", "1.00", "0 %", "2.00"],
    ]
    results = json.loads((out / "tensorrt.json").read_text())
    assert results["setting"]["size"] == "256x256"
    assert [row["times"] for row in results["rows"]] == [[2.0, 2.0], [5.0, 5.0], [5.0, 5.0]]
    weight = onnx.load(out / "float_fp16.onnx").graph.initializer[0]
    assert weight.data_type == onnx.TensorProto.FLOAT16


def test_what_trtexec_says_of_an_error_is_shown(tmp_path, programs, float_file, run):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"\[E\] Failed to parse onnx file$"):
        run(broken, "--float", float_file, "--out", tmp_path / "out", path=programs)


def test_without_trtexec_it_says_so(tmp_path, float_file, run):
    with pytest.raises(SystemExit) as raised:
        run(float_file, "--float", float_file, path=tmp_path)
    assert str(raised.value) == (
        "trtexec isn't on the PATH: it comes with TensorRT, and needs an NVIDIA GPU"
    )


def test_a_missing_file_is_named(tmp_path, programs, float_file, run):
    missing = tmp_path / "net.onnx"
    with pytest.raises(SystemExit) as raised:
        run(missing, "--float", float_file, path=programs)
    assert str(raised.value) == f"{missing}: no such file"


def layer(count, kind, side):
    return {
        "Kernel": [3, 3],
        "Weights": {"Count": count, "Type": kind},
        "Outputs": [{"Dimensions": [1, 8, side, side]}],
    }


def test_the_share_is_that_of_macs():
    other = {"Name": "a copy", "Outputs": [{"Dimensions": [1, 8, 4, 4]}]}
    assert integer_share([layer(10, "Int8", 8), other, layer(40, "Half", 4)]) == 0.5


def test_layers_without_details_are_refused():
    with pytest.raises(SystemExit, match="names no convolution"):
        integer_share([{"Name": "conv"}])


def test_speeds_are_those_of_the_last_file():
    rows = [
        {"file": "a", "times": [1.0, 3.0, 2.0], "integer MACs": 1.0, "engine MB": 1.0},
        {"file": "b", "times": [4.0], "integer MACs": 0.0, "engine MB": 2.0},
    ]
    assert "| a      | 2.00 | 2.00 " in make_table(rows)
