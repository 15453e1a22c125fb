"""The README's snippets do what they say."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_EDSR, write_images

from adabm_basicsr.commands.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()


def snippets(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_python_snippet_runs(tmp_path):
    snippet = snippets("python")[0]
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "average bits (FAB)" in done.stdout
    assert (tmp_path / "quantized.pth").is_file()


@pytest.fixture
def deployed(tmp_path, monkeypatch):
    """A network, in every format under the documentation's names, with images; returns it."""
    from adabm_basicsr import calibrate, save_checkpoint, save_onnx, save_packed
    from adabm_basicsr.archs.adabm_arch import AdaBMNetwork

    monkeypatch.chdir(tmp_path)
    net = calibrate(AdaBMNetwork(network=dict(TINY_EDSR)), [torch.rand(2, 3, 16, 16)])
    for folder in (tmp_path, tmp_path / "experiments" / "AdaBM_EDSR_Mx4" / "models"):
        save_checkpoint(net, folder / "net_g_latest.pth")
    save_packed(net, "net_g_latest.safetensors")
    save_onnx(net, "net_g_latest.onnx")
    write_images(tmp_path / "photos", [(20, 24), (16, 18)])
    return net


def test_loading_snippet_runs(deployed):
    names = {"low_resolution": torch.rand(2, 3, 16, 16)}
    exec(snippets("python", DEPLOY)[1], names)
    assert torch.equal(names["image"], deployed(names["low_resolution"]))


def test_deployment_snippet_runs(deployed):
    names = {}
    exec(snippets("python", DEPLOY)[0], names)
    assert names["output"].shape == (1, 3, 240, 320)


@pytest.mark.parametrize("text", [README, DEPLOY], ids=["README", "deploy"])
def test_deployment_commands_run(text, deployed):
    commands = re.findall(r"^adabm-basicsr ((?:export|upscale) .*)$", text, re.M)
    assert len(commands) == 2
    for command in commands:
        main(shlex.split(command, comments=True))
    assert len(list(Path("upscaled").iterdir())) == 2


def test_commands_name_existing_option_files():
    files = re.findall(r"(options/(?:train|test)/\S+\.yml)", README)
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_demo_table_is_that_of_its_report():
    import json

    from adabm_basicsr.report.tables import sets_table

    figures = json.loads((ROOT / "docs/demo.json").read_text())
    assert f"```\n{sets_table(figures).text()}\n```" in README
