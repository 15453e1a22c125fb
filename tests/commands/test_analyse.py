"""A look before anything is trained."""

import json
import re
from pathlib import Path

import cv2
import pytest

from adabm_basicsr.commands.main import main
from adabm_basicsr.report.tables import look_up


def test_table_page_and_figures_say_the_same(workspace, capsys):
    workspace.write(workspace.train_options(network_g__recipe="fast"))
    main(["analyse", "-opt", "options.yml", "--json"])
    figures = json.loads(capsys.readouterr().out)
    page = Path("analysis/tiny/analysis.html").read_text()
    assert figures == json.loads(Path("analysis/tiny/analysis.json").read_text())
    assert {layer["role"] for layer in figures["layers"]} == {"head", "body", "trunk end", "tail"}
    assert sum(layer["error_share"] for layer in figures["layers"]) == pytest.approx(1)
    for name in ("settings", "errors"):
        assert cv2.imread(f"analysis/tiny/{name}.png").std() > 5
    pointers = re.findall(r'data-figure="([^"]+)"', page)
    assert len(pointers) > 50
    for pointer in pointers:
        keys = [int(key) if key.isdigit() else key for key in pointer.split("/")[1:]]
        assert look_up(figures, keys) is not None
    assert not Path("experiments").exists()

    main(["analyse", "-opt", "options.yml", "-o", "elsewhere"])
    printed = capsys.readouterr().out
    assert "estimates, nothing is trained" in printed
    assert figures["advice"][0] in printed
    assert printed.endswith("written: elsewhere/analysis.html\n")


def test_a_quantized_checkpoint_is_refused(at_run, capsys, tmp_path):
    from conftest import Workspace

    checkpoint = "experiments/tiny/models/net_g_latest.pth"
    options = Workspace(at_run).train_options(path__pretrain_network_g=checkpoint)
    path = Workspace(tmp_path).write(options)
    with pytest.raises(SystemExit):
        main(["analyse", "-opt", str(path)])
    assert f"{checkpoint} is quantized already" in capsys.readouterr().err
