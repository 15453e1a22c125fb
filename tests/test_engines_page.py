"""The page that says which file is for which program is right, and what it shows runs."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from agreement import quantized
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from conftest import photograph, write_images
from engine_networks import NETWORKS
from safetensors.torch import save_file
from test_docs import read
from test_readme import snippets

from adabm_basicsr.commands.main import main
from adabm_basicsr.deployment.engines import EXPORTS, save_for
from adabm_basicsr.deployment.ncnn.convolutions import CONVOLUTIONS
from adabm_basicsr.deployment.ncnn.operators import CONVERTERS
from adabm_basicsr.quantization.engines import DEFAULT_ENGINE, ENGINES

PAGE = read("engines.md")
OPERATORS = re.search(r"<!-- operators of ncnn: begin -->(.*?)<!-- ", PAGE, re.S).group(1)


def rows():
    """Engine, bits and command of each program."""
    table = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \| `(adabm-basicsr .*?)` \|", PAGE, re.M)
    return [(engine.partition(",")[0].strip("`"), bits, how) for _, engine, bits, how in table]


def test_every_engine_has_its_row():
    named = {engine for engine, _, _ in rows()}
    assert named == {*ENGINES, "any"}
    for engine, _, command in rows():
        assert f"--for {engine}" in command or engine == "any"


def test_bits_are_those_that_the_engine_takes():
    for engine, bits, _ in rows():
        if engine in (DEFAULT_ENGINE, "any"):
            assert bits == "any"
            continue
        traits = ENGINES[engine]
        assert bits == f"`w_bits: {traits.max_w_bits}`, `a_bits: {traits.min_a_bits}`"


def test_operators_of_ncnn_are_those_that_can_be_written():
    assert re.findall(r"`(\w+)`", OPERATORS) == sorted([*CONVERTERS, *CONVOLUTIONS])


def save_as_real_esrgan(state):
    torch.save({"params_ema": state}, "net_g_ema.pth")
    return "net_g_ema.pth"


def save_as_trainner(state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, "net.safetensors")
    return "net.safetensors"


@pytest.mark.parametrize(
    "save", [save_as_real_esrgan, pytest.param(save_as_trainner, marks=pytest.mark.slow)]
)
def test_four_commands_from_a_checkpoint_to_pixels(save, tmp_path, monkeypatch):
    pytest.importorskip("spandrel")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    path = save(SRVGGNetCompact(num_feat=16, num_conv=3, upscale=4).state_dict())
    options = yaml.safe_load(snippets("yaml", PAGE)[1])
    assert options["network_g"]["network"]["path"] == "net_g_ema.pth"
    options["network_g"]["network"]["path"] = path
    options["num_gpu"] = 0
    options["train"]["total_iter"] = 3
    options["datasets"]["train"]["lq_size"] = 16
    Path("int8.yml").write_text(yaml.safe_dump(options))
    write_images(tmp_path / "photos", [(96, 80)] * 2)
    commands = re.findall(r"^adabm-basicsr (.*)$", PAGE, re.M)
    assert len(commands) == 4
    for command in commands:
        main(shlex.split(command))
    assert [cv2.imread(str(image)).shape for image in Path("upscaled").iterdir()] == [
        (384, 320, 3)
    ] * 2


def test_the_first_snippet_is_that_of_the_four_commands():
    short, whole = map(yaml.safe_load, snippets("yaml", PAGE))
    assert short["network_g"].items() <= whole["network_g"].items()


@pytest.mark.parametrize("snippet", snippets("python", PAGE))
def test_snippets_give_the_pixels_of_the_simulation(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = quantized(NETWORKS["EDSR"], engine="portable", recipe="fast", w_bits=7, a_bits=8)
    save_for("portable", net, Path("net.onnx"))
    photo = photograph(24, 30)
    cv2.imwrite("photo.png", photo)
    exec(snippet, {})
    image = torch.from_numpy(photo[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = 255 * net(image)[0].clamp(0, 1).permute(1, 2, 0).flip(2).numpy()
    found = cv2.imread("upscaled.png").astype(float)
    assert np.square(found - expected).mean() < 1


def test_exports_are_of_engines_that_exist():
    assert set(EXPORTS) <= set(ENGINES)
