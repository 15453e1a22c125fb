"""The report of a run: the same figures everywhere, whatever sets and runs are called."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import TINY_EDSR, Workspace
from page_figures import PageFigures

from adabm_basicsr.report.build import report_run
from adabm_basicsr.report.tables import all_tables

RUN = Path("results/tiny_test")
UNITS = {" G": 1e9, " MB": 1e6, " kB": 1e3, " %": 0.01}


def look_up(content, pointer):
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        content = content[int(key)] if isinstance(content, list) else content.get(key)
        if content is None:
            return None
    return content


def leading_number(text):
    found = re.match(r"-?[\d,.]+(e[+-]\d+)?", text)
    return found and float(found.group().replace(",", ""))


def test_every_figure_of_the_page_is_that_of_the_json_and_of_the_log(at_run):
    page = PageFigures((RUN / "report/report.html").read_text())
    figures = json.loads((RUN / "report/report.json").read_text())
    log = (RUN / "report/report.log").read_text()
    sections = {pointer.split("/")[1] for pointer, _ in page.shown}
    assert {"sets", "layers", "phases", "runs"} <= sections
    for pointer, text in page.shown:
        value = look_up(figures, pointer)
        assert text in log, (pointer, text)
        number = leading_number(text)
        if isinstance(value, int | float) and number is not None:
            unit = next((factor for unit, factor in UNITS.items() if text.endswith(unit)), 1)
            expected = pytest.approx(value, rel=0.02, abs=0.06 * unit)
            assert number * unit == expected, pointer
        elif isinstance(value, str):
            assert text == value
        elif value is None:
            assert text == "–"


def test_figures_are_those_that_the_run_logged(at_run):
    figures = json.loads((RUN / "report/report.json").read_text())
    log = next(RUN.glob("*.log")).read_text()
    own = figures["sets"]["Val"]["versions"]["adaptive"]
    for metric in ("psnr", "fab"):
        logged = re.findall(rf"# {metric}: ([\d.]+)", log)
        assert logged == [f"{own[metric]:.4f}"]
    metrics = json.loads((RUN / "metrics.json").read_text())["Val"]
    assert metrics.items() <= own.items()
    training = next(Path("experiments/tiny").glob("*.log")).read_text()
    for layer in figures["layers"]:
        assert re.search(rf"{re.escape(layer['name'])} .* {layer['sqnr_db']:.1f} ", training)


def test_sets_of_any_name_with_and_without_ground_truth_beside_a_damaged_run(at_run, recwarn):
    name = "<i>\"&'$\u6f22$"
    run = Path("results/<b>\"&'$\u6f22$")
    shutil.copytree(RUN, run)
    shutil.copytree(run / "pictures/Val", run / "pictures" / name)
    shutil.rmtree(run / "pictures" / name / "ground_truth")
    record = json.loads((run / "run.json").read_text())
    record["name"] = run.name
    (run / "run.json").write_text(json.dumps(record))
    Path("results/damaged").mkdir()
    Path("results/damaged/run.json").write_text("{")
    figures = report_run(run)
    page = PageFigures((run / "report/report.html").read_text())
    shutil.rmtree(run)
    shutil.rmtree("results/damaged")
    assert {crop["set"] for crop in figures["crops"]} == {"Val", name}
    assert {point["name"] for point in figures["runs"]} == {"tiny_test", run.name}
    assert ("/runs/0/name", run.name) in page.shown
    assert not recwarn


def test_a_run_of_full_precision_has_the_cost_that_quantization_is_compared_with(at_run):
    Workspace(at_run).test(
        name="full", network_g=dict(TINY_EDSR), path__pretrain_network_g="tiny.pth"
    )
    figures = json.loads(Path("results/full/report/report.json").read_text())
    shutil.rmtree("results/full")
    own = figures["sets"]["Val"]["versions"]["full_precision"]
    bitops = [image["bitops"] for image in figures["sets"]["Val"]["images"]]
    macs_per_pixel = 6264  # of an LR pixel, by hand
    assert bitops == [macs_per_pixel * pixels * 32 * 32 for pixels in (24 * 32, 28 * 24)]
    quantized = json.loads((RUN / "report/report.json").read_text())
    assert own.items() <= quantized["sets"]["Val"]["versions"]["full_precision"].items()


def test_markdown_holds_the_tables(at_run):
    figures = json.loads((RUN / "report/report.json").read_text())
    written = (RUN / "report/report.md").read_text()
    tables = all_tables(figures)
    assert list(tables) == ["summary", "sets", "classes", "phases", "layers", "runs"]
    for table in tables.values():
        assert table.text("github") in written


def test_a_record_of_bits_without_classes_has_no_map(at_run):
    run = Path("results/earlier")
    shutil.copytree(RUN, run)
    record = json.loads((run / "run.json").read_text())
    bit_map = record["sets"]["Val"]["bit_map"]
    del bit_map["classes"], bit_map["class_facts"]
    (run / "run.json").write_text(json.dumps(record))
    figures = report_run(run)
    page = (run / "report/report.html").read_text()
    shutil.rmtree(run)
    assert "classes" not in all_tables(figures)
    assert 'id="map"' not in page


def test_a_record_of_clips_from_before_bits_of_frames_were_kept(at_run, tmp_path):
    facts = json.loads((at_run / "results/tiny_test/run.json").read_text())
    facts["sets"]["Val"]["by_frame"] = {"psnr": [30.0, 29.0]}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    report_run(tmp_path)
    assert (tmp_path / "report/frames.png").is_file()
