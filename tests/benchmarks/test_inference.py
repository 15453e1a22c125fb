"""The benchmark of inference on a tiny network: each program's rows, kept from run to run."""

import json
import sys

import pytest
import torch
from agreement import quantized
from conftest import write_images

from adabm_basicsr.deployment.engines import EXPORTS
from adabm_basicsr.quantization.checkpoint import save_checkpoint

inference = pytest.importorskip("inference", reason="needs onnx, onnxruntime and openvino")

import networks  # noqa: E402
import peers  # noqa: E402
import variants  # noqa: E402

KIND = "EDSR"
TINY = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 4}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with images, weights, and a checkpoint for each engine."""
    from basicsr.archs import build_network

    folder = tmp_path_factory.mktemp("inference")
    torch.manual_seed(0)
    (folder / "weights").mkdir()
    net = build_network({"type": KIND, **TINY})
    torch.save({"params": net.state_dict()}, folder / "weights" / "tiny.pth")
    for name, count in (("Set5", 2), ("Set14", 1), ("calibration", 4)):
        write_images(folder / "data" / name / "LRbicx4", [(24, 32)] * count)
        write_images(folder / "data" / name / "GTmod12", [(96, 128)] * count)
    for engine in EXPORTS:
        bits = variants.bits_of_engine(engine, "W8A8")
        w_bits, a_bits = variants.parse_bits(bits)
        ours = quantized({"type": KIND, **TINY}, engine=engine, w_bits=w_bits, a_bits=a_bits)
        ours.network.load_state_dict(net.state_dict(), strict=False)
        path = folder / "files" / KIND / f"{engine}_{bits}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(ours, path)
    return folder


@pytest.fixture
def run(measured, monkeypatch):
    """Runs the benchmark with some flags; returns its rows by program and name."""
    monkeypatch.setitem(networks.NETWORKS, KIND, TINY)
    monkeypatch.setitem(networks.WEIGHTS, KIND, "tiny.pth")
    for module in (inference, networks):
        monkeypatch.setattr(module, "SHARED", measured)
    monkeypatch.setattr(peers, "SCORED", 1)
    # Half as many processes, and CPUs that lack it would take minutes.
    monkeypatch.setattr(variants, "has_bfloat16", lambda: False)

    def run_with(*flags):
        command = ["inference.py", "--size", "20x16", "--rounds", "1", "--threads", "1"]
        command += ["--out", str(measured), "--cache", str(measured / "files")]
        monkeypatch.setattr(sys, "argv", [*command, *flags])
        inference.main()
        results = json.loads((measured / "inference.json").read_text())
        return {(row["program"], row["name"]): row for row in results["rows"].values()}

    return run_with


# Each measures in processes that take seconds to start.
@pytest.mark.slow
@pytest.mark.parametrize("program", variants.PROGRAMS)
def test_each_program_is_measured(program, run):
    rows = run("--only", f"{program}/{KIND}", "--sets", "Set5")
    found = [row for (of, _), row in rows.items() if of == program]
    assert len(found) == len(variants.variants(program, ["W8A8"], all_peers=False))
    for row in found:
        if row["role"] == "peer" and "No module named" in row.get("error", ""):
            continue  # of a tool that isn't installed
        assert row["ms"] > 0
        assert row["peak MB"] > 10
        assert row["file MB"] > 0
        figures = row["sets"]["Set5"]
        if row["name"] == "float32":
            assert figures["self-PSNR"] > 100
            assert row.get("integer MACs", 0) == 0
        if row["role"] == "ours":
            assert figures["agreement"] > 38


@pytest.mark.slow
def test_what_is_there_is_kept_and_the_rest_added(run):
    only = ("--only", f"pytorch/{KIND}", "--sets", "Set5")
    key = ("pytorch", "float32")
    before = run(*only, "--speed-only", "--again")
    after = run(*only)
    assert after[key]["ms"] == before[key]["ms"]
    assert "Set5" in after[key]["sets"]
    again = run(*only, "--again", "--speed-only")
    assert again[key]["ms"] != after[key]["ms"]
    assert again[key]["sets"] == after[key]["sets"]  # of a file that stayed


def test_results_of_another_setting_are_left_alone(run):
    only = ("--only", f"pytorch/{KIND}", "--speed-only")
    run(*only)
    with pytest.raises(SystemExit, match="was measured in another setting"):
        run(*only, "--size", "24x24")


def row_of(name, role, ms, **more):
    facts = {"network": KIND, "program": "ncnn", "name": name, "role": role, "runs in": "ncnn"}
    return {**facts, "ms": ms, "peak MB": 100.0, "file MB": 1.0, "sets": {}, **more}


def test_table_compares_with_float_and_the_other_tool():
    sets = {"Set5": {"loss": 0.0123, "self-PSNR": 50.0, "agreement": 61.0}}
    rows = {
        "a": row_of("float32", "float", 30.0),
        "b": row_of("other", "peer", 12.0),
        "c": row_of("ours", "ours", 10.0, sets=sets, **{"integer MACs": 0.5}),
        "d": {
            "network": KIND,
            "program": "openvino",
            "name": "NNCF",
            "role": "peer",
            "error": "no",
        },
    }
    table = inference.make_table(rows)
    cells = [cell.strip() for cell in table.splitlines()[-1].split("|")]
    for cell in ("10.0", "3.00", "1.20", "50 %", "61.0", "0.012", "50.0", "100", "1.00"):
        assert cell in cells
    # Programs stand in their order; what failed says why.
    assert "no" in [cell.strip() for cell in table.splitlines()[2].split("|")]


def test_other_tools_are_tried_at_several_settings(run, measured, tmp_path):
    source = tmp_path / "float.onnx"
    variants.save_float(KIND, source)
    peers.onnxruntime_best(source, tmp_path / "best.onnx")
    choice = json.loads(peers.choice_path(tmp_path / "best.onnx").read_text())
    assert list(choice["self-PSNR"]) == list(peers.ONNXRUNTIME_BEST)
    assert choice["self-PSNR"][choice["chosen"]] == max(choice["self-PSNR"].values())
    peers.onnxruntime_defaults(source, tmp_path / "defaults.onnx")
    layers = variants.onnxruntime_file_layers
    assert variants.share_of(layers(tmp_path / "best.onnx")) == 1
    assert variants.share_of(layers(tmp_path / "defaults.onnx")) < 1
