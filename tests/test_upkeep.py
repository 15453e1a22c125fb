"""Files around the package agree with it: contributing, changes, citation, CI."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from test_readme import snippets
from torch import nn

import adabm_basicsr
from adabm_basicsr import calibrate, quantize, summarize
from adabm_basicsr.commands.main import COMMANDS
from adabm_basicsr.quantization.layers import base

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


class Rows(nn.Module):
    """A network with a layer type that the package doesn't know: a convolution along each row."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.along = nn.Conv1d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        features = self.first(x)
        rows = features.transpose(1, 2).flatten(0, 1)
        return self.last(self.along(rows).unflatten(0, (len(x), -1)).transpose(1, 2))


@pytest.mark.parametrize("recipe", ["best", "paper", "static"])
def test_a_new_layer_type_as_shown(recipe, monkeypatch):
    monkeypatch.setattr(base, "_QUANTIZED_TYPES", dict(base._QUANTIZED_TYPES))
    names = {"__name__": "snippet"}
    exec(snippets("python", CONTRIBUTING)[0], names)
    images = torch.rand(4, 3, 12, 12)
    net = calibrate(quantize(Rows(), images[:1], recipe=recipe, fully_quantized=True), [images])
    assert type(net.layers()["along"]) is names["QuantizedConv1d"]
    row = next(layer for layer in summarize(net, images).layers if layer.name == "along")
    assert row.macs_share > 0.1
    assert row.sqnr_db > 10


def test_contributing_names_files_that_exist():
    paths = re.findall(r"`((?:adabm_basicsr|tests|options|docs|\.ci)/[\w./]+)`", CONTRIBUTING)
    paths += re.findall(r"`python (\S+)`", CONTRIBUTING)
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert len(paths) > 15
    assert missing == []


def test_contributing_names_tables_that_exist():
    for table, path in re.findall(r"an entry of `(\w+)` in `(\S+)`", CONTRIBUTING):
        assert re.search(rf"^{table}\b.* = ", (ROOT / path).read_text(), re.M), table


def test_changelog_and_citation_are_of_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {adabm_basicsr.__version__}" in changes
    assert {name for name in COMMANDS if f"`{name}`" not in changes} == set()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == adabm_basicsr.__version__
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2404.03296"


def test_workflow_runs_what_ci_runs_on_every_python():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["ci"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    stated = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text())
    assert job["strategy"]["matrix"]["python"] == stated


def test_pre_commit_has_the_pinned_ruff():
    pinned = re.search(r"^ruff==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["rev"] for hook in hooks if "ruff" in hook["repo"]] == [f"v{pinned}"]
