"""The command that imports quantized checkpoints of the published code."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from published_files import NETWORKS, ready_network, to_published

from adabm_basicsr.commands.main import main


def test_command_writes_what_the_test_command_takes(workspace, capsys):
    network = {**NETWORKS["EDSR"], "num_feat": 8}
    torch.save(to_published(ready_network(network, fully_quantized=True), network), "published.pt")
    main(["import", "published.pt", "-o", "imported/edsr.pth"])
    assert capsys.readouterr().out.splitlines() == [
        "published.pt: EDSR x2 (num_block 2, num_feat 8, res_scale 1), fully quantized, "
        "taken as w_bits 4, a_bits 4 (the file doesn't hold its bits)",
        "written: imported/edsr.pth, and imported/edsr.yml with its network_g and path for an "
        "option file (adabm-basicsr test)",
    ]
    sections = yaml.safe_load(Path("imported/edsr.yml").read_text())
    workspace.test(**sections)
    assert (workspace.root / "results" / "tiny_test" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.pt", "-o", "out.pth"], "checkpoint gone.pt does not exist"),
        (
            ["published.pt", "-o", "out.yml"],
            "--out: out.yml must be another file than the published one, and end in",
        ),
        (["a.pth", "-o", "a.pth"], "--out: a.pth must be another file than the published one"),
        (["published.pt", "-o", "out.pth"], "checkpoint published.pt cannot be read"),
        (
            ["published.pt", "-o", "out.pth", "--w-bits", "9"],
            "w_bits: 9 is out of range; valid: 2 to 8",
        ),
    ],
)
def test_command_fails_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("published.pt").write_text("no checkpoint")
    with pytest.raises(SystemExit) as stopped:
        main(["import", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published.pt"]


def test_command_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(to_published(ready_network(NETWORKS["EDSR"]), NETWORKS["EDSR"]), "published.pt")
    page = Path(__file__).parents[2] / "docs" / "moving.md"
    (command,) = re.findall(r"^adabm-basicsr (.*)$", page.read_text(), re.M)
    main(shlex.split(command))
    assert yaml.safe_load(Path("net.yml").read_text())["network_g"]["recipe"] == "paper"
