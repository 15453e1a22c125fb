"""Tests whose option file leaves the network to the checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adabm_basicsr.bridge.described import take_network
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY

CHECKPOINT = "experiments/tiny/models/net_g_latest.pth"
ARCHITECTURE = """
from basicsr.utils.registry import ARCH_REGISTRY
from basicsr.archs.edsr_arch import EDSR

@ARCH_REGISTRY.register()
class OwnEDSR(EDSR):
    pass
"""


def metrics(name):
    return json.loads(Path(f"results/{name}/metrics.json").read_text())["Val"]


def describe(path, **changes):
    """Change what a checkpoint says of its network."""
    content = torch.load(path, weights_only=True)
    description = json.loads(content[DESCRIPTION_KEY])
    description.update(changes)
    content[DESCRIPTION_KEY] = json.dumps(description)
    torch.save(content, path)


def test_the_network_is_that_of_the_checkpoint(workspace):
    options = workspace.network_options()
    options.update(recipe="fast", w_bits=3, exclude=["body.1.conv1"])
    options["layers"] = {"body.0.*": {"a_bits": 6}}
    workspace.train(network_g=options, train__total_iter=2)
    workspace.test(name="given", network_g=options)
    for name, left_out in (("without", ...), ("empty", None), ("no_keys", {})):
        workspace.test(name=name, network_g=left_out)
        assert metrics(name) == metrics("given")
    run = json.loads(Path("results/without/run.json").read_text())
    assert run["recipe"] == "fast"


def test_reports_are_made_of_such_a_test(workspace):
    from adabm_basicsr.commands.main import main

    workspace.train(train__total_iter=0)
    workspace.test(network_g=...)
    main(["report", "results/tiny_test"])
    assert Path("results/tiny_test/report/report.html").is_file()


def test_basicsrs_own_entry_point_takes_it_too(workspace):
    workspace.train(train__total_iter=0)
    workspace.test(name="ours", network_g=...)
    path = workspace.write(workspace.test_options(name="theirs", network_g=...))
    code = (
        "import adabm_basicsr, os; from basicsr.test import test_pipeline\n"
        "test_pipeline(os.getcwd())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, "-opt", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert metrics("theirs") == metrics("ours")


@pytest.fixture
def own_architecture(workspace, monkeypatch):
    """A run with a network of the user's own, whose module isn't imported any more."""
    from basicsr.utils.registry import ARCH_REGISTRY

    (workspace.root / "own_archs.py").write_text(ARCHITECTURE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    network = {**workspace.network_options()["network"], "type": "OwnEDSR"}
    workspace.train(
        network_g__network=network,
        network_g__custom_imports="own_archs",
        train__total_iter=0,
    )

    def forget():
        ARCH_REGISTRY._obj_map.pop("OwnEDSR", None)
        sys.modules.pop("own_archs", None)

    forget()
    yield workspace
    forget()


def test_modules_of_the_users_own_are_named_by_the_user(own_architecture, capsys):
    with pytest.raises(SystemExit):
        own_architecture.test(network_g=...)
    assert "own_archs" not in sys.modules
    assert (
        f"the network 'OwnEDSR' of checkpoint {CHECKPOINT} is registered by own_archs: name what "
        "you trust as network_g: custom_imports" in capsys.readouterr().err
    )
    own_architecture.test(network_g={"custom_imports": ["own_archs"]})
    assert 3 <= metrics("tiny_test")["fab"] <= 5


def test_a_checkpoint_imports_nothing(workspace, monkeypatch):
    (workspace.root / "evil.py").write_text("open('hacked', 'w')\n")
    monkeypatch.syspath_prepend(workspace.root)
    workspace.train(train__total_iter=0)
    content = torch.load(CHECKPOINT, weights_only=True)
    options = json.loads(content[DESCRIPTION_KEY])["options"]
    describe(CHECKPOINT, custom_imports=["evil"])
    workspace.test(network_g=...)
    describe(CHECKPOINT, options={**options, "custom_imports": ["evil"]})
    with pytest.raises(SystemExit):
        workspace.test(network_g=...)
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    ("opt", "message"),
    [
        ({}, "network_g is missing from the option file, and there is no path: pretrain_network_g"),
        ({"path": {}}, "there is no path: pretrain_network_g to take it from"),
        ({"path": 3}, "path: 3 is not a section of keys"),
        ({"path": {"pretrain_network_g": 3}}, "path: pretrain_network_g: 3 is not a text"),
        (
            {"path": {"pretrain_network_g": "tinny.pth"}},
            "checkpoint tinny.pth does not exist; did you mean 'tiny.pth'?",
        ),
        (
            {"path": {"pretrain_network_g": "tiny.pth"}},
            "checkpoint tiny.pth doesn't describe its network; give network_g",
        ),
        ({"network_g": {"custom_imports": [3]}}, "custom_imports: [3] is not a list of texts"),
    ],
)
def test_mistakes(workspace, opt, message):
    with pytest.raises(AdaBMError) as error:
        take_network(opt)
    assert message in str(error.value)


def test_a_damaged_description(workspace):
    workspace.train(train__total_iter=0)
    describe(CHECKPOINT, network=None)
    with pytest.raises(AdaBMError, match="is damaged: network is missing; give network_g"):
        take_network({"path": {"pretrain_network_g": CHECKPOINT}})


def test_a_network_that_is_given_stays(workspace):
    opt = {"network_g": {"type": "EDSR"}, "path": {"pretrain_network_g": "gone.pth"}}
    take_network(opt)
    assert opt["network_g"] == {"type": "EDSR"}


def test_training_needs_its_own(workspace, capsys):
    with pytest.raises(SystemExit):
        workspace.train(network_g=...)
    assert "network_g is missing from the option file" in capsys.readouterr().err
