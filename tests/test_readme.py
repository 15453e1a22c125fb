"""The README's snippets do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def snippets(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def snippet_with(text):
    return next(snippet for snippet in snippets("python") if text in snippet)


def test_python_snippet_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", snippet_with("quantize(")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "average bits (FAB)" in done.stdout and (tmp_path / "quantized.pth").is_file()


def test_deployment_snippet_runs(tmp_path, monkeypatch):
    import torch
    from conftest import TINY_EDSR

    from adabm_basicsr import calibrate, save_packed
    from adabm_basicsr.archs.adabm_arch import AdaBMNetwork

    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    net = calibrate(AdaBMNetwork(network=dict(TINY_EDSR)), [images])
    save_packed(net, "net_g_latest.safetensors")
    names = {"low_resolution": images}
    exec(snippet_with("load_network("), names)
    assert torch.equal(names["image"], net(images))


def test_yaml_names_every_key():
    from adabm_basicsr import QuantizationConfig
    from adabm_basicsr.models.adabm_model import TRAIN_OPTIONS

    options = yaml.safe_load(snippets("yaml")[0])
    assert set(options["network_g"]) == {"type", "network", "custom_imports", *QuantizationConfig.__dataclass_fields__}
    assert set(options["train"]) == set(TRAIN_OPTIONS)


def test_yaml_keys_run(workspace):
    shown = yaml.safe_load(snippets("yaml")[0])
    network = {**shown["network_g"], "network": workspace.network_options()["network"]}
    data = {**workspace.train_options()["datasets"]["train"], **shown["datasets"]["train"]}
    train = {"datasets__train": {**data, "dataroot_lq": "lr", "lq_size": 24}, "train": shown["train"]}
    train["train"]["total_iter"] = 3
    workspace.train(network_g=network, **train)


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)h][^)]*)\)", README)
    assert links and all((ROOT / link).exists() for link in links)


def test_commands_name_existing_option_files():
    files = re.findall(r"-opt (options/\S+\.yml)", README)
    assert files and all((ROOT / file).is_file() for file in files)
