"""What is in a file, in one table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adabm_basicsr import load_network, save_packed
from adabm_basicsr.commands.main import main

CHECKPOINT = "experiments/tiny/models/net_g_latest.pth"


def test_quantized_checkpoint_and_packed_file_hold_the_same(at_run, capsys):
    save_packed(load_network(CHECKPOINT), "net.safetensors")
    found = []
    for path in (CHECKPOINT, "net.safetensors"):
        main(["inspect", path, "--json"])
        found.append(json.loads(capsys.readouterr().out))
    checkpoint, packed = found
    assert checkpoint["rows"] == packed["rows"]
    assert checkpoint["facts"] == packed["facts"]
    assert packed["bytes"] < checkpoint["bytes"]
    assert [row["a_bits"] for row in checkpoint["rows"] if row["role"] in ("head", "tail")] == [
        "8"
    ] * 3
    assert sum(row["macs"] for row in checkpoint["rows"]) == pytest.approx(1)


def test_ranges_are_those_of_the_report(at_run, capsys):
    main(["inspect", CHECKPOINT, "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    recorded = json.loads(Path("experiments/tiny/run.json").read_text())["layers"]
    assert [row["name"] for row in rows] == [layer["name"] for layer in recorded]
    for row, layer in zip(rows, recorded, strict=True):
        ends = (layer["lower"], layer["upper"])
        assert (row["lower"], row["upper"]) == pytest.approx(ends, rel=1e-3)
        assert 0 <= layer["clipped"] < 0.1


def test_table_for_the_terminal(at_run, capsys):
    main(["inspect", CHECKPOINT, "--quiet"])
    assert capsys.readouterr().out == ""
    main(["inspect", CHECKPOINT])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{CHECKPOINT}: quantized network, 0.0")
    assert "network EDSR, recipe paper, w_bits 4" in lines[1]
    assert lines[3].split() == [
        "layer",
        "role",
        "w",
        "bits",
        "a",
        "bits",
        "lower",
        "upper",
        "weights",
        "MACs",
    ]
    assert len(lines) == 13


def test_plain_checkpoint(at_run, capsys):
    main(["inspect", "tiny.pth"])
    assert "conv_first.weight       8 x 3 x 3 x 3   float32" in capsys.readouterr().out


def test_onnx_file_with_our_description(at_run, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    import numpy as np

    weight = onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.int8), "weight")
    scale = onnx.numpy_helper.from_array(np.float32(0.5), "scale")
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["weight", "scale"], ["real"], name="of_weight"),
        onnx.helper.make_node("Conv", ["image", "real"], ["out"], name="conv"),
    ]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1, 4, 6, 6])
    graph = onnx.helper.make_graph(nodes, "tiny", [image], [out], [weight, scale])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    description = {
        "version": "0.1.0",
        "network": {"type": "EDSR"},
        "options": {"recipe": "best", "w_bits": 4},
    }
    onnx.helper.set_model_props(model, {"adabm_basicsr": json.dumps(description)})
    onnx.save(model, tmp_path / "net.onnx")
    main(["inspect", str(tmp_path / "net.onnx")])
    lines = capsys.readouterr().out.splitlines()
    assert "network EDSR, recipe best, w_bits 4" in lines[1]
    assert "opset 17" in lines[1]
    assert len(lines) == 6
    assert lines[5].split() == [
        "conv",
        "Conv",
        *["4", "x", "3", "x", "3", "x", "3"],
        "int8",
    ]


@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net.safetensors"])
def test_corrupt_files_are_named(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"\x08\x99" * 40)
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / name)])
    assert f"{name} cannot be read" in capsys.readouterr().err


def test_what_a_terminal_would_act_on_is_shown_as_escapes(tmp_path, capsys):
    torch.save({"body\x1b[2J.0\nweight": torch.zeros(2)}, tmp_path / "evil.pth")
    main(["inspect", str(tmp_path / "evil.pth")])
    shown = capsys.readouterr().out
    assert "body\\x1b[2J.0\\nweight" in shown
    assert "\x1b" not in shown


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    state = {
        f"layer.{index}.weight": torch.zeros(1) for index in range(4000)
    }  # more than a pipe holds
    torch.save(state, tmp_path / "long.pth")
    command = [sys.executable, "-m", "adabm_basicsr", "inspect", str(tmp_path / "long.pth")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 141
    assert not errors
