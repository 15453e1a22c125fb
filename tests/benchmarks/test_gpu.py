"""The script for GPUs, tried out on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import gpu as benchmark
import pytest
import torch

SCRIPT = Path(benchmark.__file__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"there is no CUDA device; --device cpu tries"):
        benchmark.main()


@pytest.mark.slow
def test_it_measures_recipes_and_inference(tmp_path):
    options = ["--images", "4", "--patch", "16", "--depth", "1", "--iterations", "4"]
    options += ["--size", "16", "--recipes", "fast", "paper"]
    command = [sys.executable, SCRIPT, "--out", tmp_path, "--device", "cpu", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| fast" in done.stdout
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["recipe"] for row in figures["recipes"]] == ["fast", "paper"]
    assert all(row["seconds"] > 0 and row["waits"] == 0 for row in figures["recipes"])
    names = [row["name"] for row in figures["inference"]]
    assert "PyTorch, float16, channels-last" in names
    assert "ONNX Runtime, TensorRT, integers" in names
