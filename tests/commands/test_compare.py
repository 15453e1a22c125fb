"""Runs side by side."""

import json
from pathlib import Path

import cv2

from adabm_basicsr.commands.main import main


def test_table_has_a_row_for_each_run_and_set(at_run, capsys):
    main(["compare", "results"])
    table = capsys.readouterr().out.splitlines()
    metrics = json.loads(Path("results/tiny_test/metrics.json").read_text())["Val"]
    assert table[0].split()[:2] == ["run", "set"]
    assert len(table) == 3
    assert table[2].startswith("tiny_test")
    assert f"{metrics['psnr']:.4f}" in table[2]


def test_files_and_plot(at_run, capsys, tmp_path):
    main(["compare", "results/tiny_test", "-o", str(tmp_path), "--quiet"])
    assert capsys.readouterr().out == ""
    main(["compare", "results/tiny_test", "-o", str(tmp_path), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "compare.json").read_text())
    assert "| tiny_test |" in (tmp_path / "compare.md").read_text().replace("  ", " ").replace(
        "  ", " "
    )
    assert "tiny_test" in (tmp_path / "compare.html").read_text()
    assert cv2.imread(str(tmp_path / "tradeoff.png")).std() > 5
