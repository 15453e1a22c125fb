"""The report of a run: the same figures everywhere, pictures made once, mistakes named."""

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import cv2
import pytest
from conftest import TINY_EDSR, Workspace

from adabm_basicsr.commands.main import main
from adabm_basicsr.report.build import report_run
from adabm_basicsr.report.figures import VERSIONS, gather
from adabm_basicsr.report.tables import all_tables
from adabm_basicsr.runs.record import read_record

RUN = Path("results/tiny_test")


class Figures(HTMLParser):
    """Texts of all elements that name a figure, by its pointer; what a page loads."""

    def __init__(self, html):
        super().__init__()
        self.shown, self.loaded, self._open = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._open = attributes.get("data-figure", self._open)
        self.loaded += [attributes[key] for key in ("src", "srcset") if attributes.get(key)]
        self.loaded += [attributes["href"]] if tag == "link" else []

    def handle_data(self, text):
        if self._open:
            self.shown.append((self._open, text))
            self._open = None


def look_up(content, pointer):
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        content = content[int(part)] if isinstance(content, list) else content.get(part)
        if content is None:
            return None
    return content


def leading_number(text):
    found = re.match(r"-?[\d,.]+(e[+-]\d+)?", text)
    return found and float(found.group().replace(",", ""))


def test_every_figure_of_the_page_is_that_of_the_json_and_of_the_log(at_run):
    page = Figures((RUN / "report/report.html").read_text())
    figures = json.loads((RUN / "report/report.json").read_text())
    log = (RUN / "report/report.log").read_text()
    assert len(page.shown) > 100
    scaled = {" G": 1e9, " MB": 1e6, " kB": 1e3, " %": 0.01}
    for pointer, text in page.shown:
        value = look_up(figures, pointer)
        assert text in log, (pointer, text)
        if isinstance(value, (int, float)) and leading_number(text) is not None:
            factor = next((f for unit, f in scaled.items() if text.endswith(unit)), 1)
            assert leading_number(text) * factor == pytest.approx(
                value, rel=0.02, abs=0.06 * factor
            ), pointer
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


def test_versions_are_what_the_python_api_computes(at_run):
    import numpy as np
    import torch
    from basicsr.metrics import calculate_psnr
    from basicsr.utils import img2tensor, tensor2img

    from adabm_basicsr import load_network

    versions = json.loads((RUN / "report/report.json").read_text())["sets"]["Val"]["versions"]
    assert list(versions) == ["full_precision", "static", "adaptive"] or set(versions) == set(
        VERSIONS
    )
    net = load_network("experiments/tiny/models/net_g_latest.pth")
    values = []
    for name in ("img_000", "img_001"):
        low = img2tensor(cv2.imread(f"val/lq/{name}.png").astype(np.float32) / 255)[None]
        with torch.no_grad(), net.full_precision():
            full = tensor2img(net(low))
        assert np.array_equal(
            full, cv2.imread(str(RUN / f"pictures/Val/full_precision/{name}.png"))
        )
        values.append(
            calculate_psnr(
                full, cv2.imread(f"val/gt/{name}.png"), crop_border=2, test_y_channel=True
            )
        )
    assert versions["full_precision"]["psnr"] == pytest.approx(np.mean(values))
    assert (
        versions["full_precision"]["bitops_share"] == 1
        and 0.03 < versions["adaptive"]["bitops_share"] < 0.06
    )
    assert (
        versions["static"]["fab"] == 4
        and versions["static"]["psnr"] != versions["adaptive"]["psnr"]
    )
    assert 20 < versions["adaptive"]["self_psnr"] < 80


def test_the_page_needs_nothing_else(at_run):
    page = Figures((RUN / "report/report.html").read_text())
    assert page.loaded and all(source.startswith("data:") for source in page.loaded)
    assert "http" not in (RUN / "report/report.html").read_text().replace(
        "http://www.w3.org/2000/svg", ""
    )


def test_crops_have_all_columns_and_worst_come_first(at_run):
    crops = json.loads((RUN / "report/report.json").read_text())["crops"]
    assert [crop["kind"] for crop in crops] == ["worst", "worst", "best", "best"]
    errors = [crop["mse"] for crop in crops]
    assert errors[0] > errors[1] and errors[2] > errors[3] and errors[0] > errors[3]
    picture = cv2.imread(str(RUN / "report/crops.png"))
    assert picture.shape[1] > 1000 and picture.std() > 10
    for version in (*VERSIONS, "low_resolution", "ground_truth"):
        assert f'data-column="{version}"' in (RUN / "report/report.html").read_text()


def test_sets_of_any_name_with_and_without_ground_truth_beside_a_damaged_run(at_run, recwarn):
    name, run = "<i>\"&'$\u6f22$", Path("results/<b>\"&'$\u6f22$")
    shutil.copytree(RUN, run)
    shutil.copytree(run / "pictures/Val", run / "pictures" / name)
    shutil.rmtree(run / "pictures" / name / "ground_truth")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "name": run.name}))
    Path("results/damaged").mkdir()
    Path("results/damaged/run.json").write_text("{")
    figures = report_run(run)
    page = Figures((run / "report/report.html").read_text())
    shutil.rmtree(run)
    shutil.rmtree("results/damaged")
    assert {crop["set"] for crop in figures["crops"]} == {"Val", name}
    assert {point["name"] for point in figures["runs"]} == {"tiny_test", run.name}
    assert ("/runs/0/name", run.name) in page.shown and not recwarn


def test_a_run_of_full_precision_tells_the_cost_that_quantization_is_compared_with(at_run):
    Workspace(at_run).test(
        name="full", network_g=dict(TINY_EDSR), path__pretrain_network_g="tiny.pth"
    )
    figures = json.loads(Path("results/full/report/report.json").read_text())
    shutil.rmtree("results/full")
    own = figures["sets"]["Val"]["versions"]["full_precision"]
    images = [image["bitops"] for image in figures["sets"]["Val"]["images"]]
    assert images == [
        6264 * pixels * 32 * 32 for pixels in (24 * 32, 28 * 24)
    ]  # MACs per LR pixel, by hand
    compared = json.loads((RUN / "report/report.json").read_text())["sets"]["Val"]["versions"][
        "full_precision"
    ]
    assert own.items() <= compared.items()


def test_markdown_holds_the_tables(at_run):
    figures = json.loads((RUN / "report/report.json").read_text())
    written = (RUN / "report/report.md").read_text()
    tables = all_tables(figures)
    assert list(tables) == ["summary", "sets", "phases", "layers", "runs"]
    assert all(table.text("github") in written for table in tables.values())


def test_layers_come_worst_first_with_their_distribution(at_run):
    layers = gather(RUN)["layers"]
    assert [layer["sqnr_db"] for layer in layers] == sorted(layer["sqnr_db"] for layer in layers)
    assert len(layers) == 8 and sum(layer["macs_share"] for layer in layers) == pytest.approx(1)
    assert all(
        sum(layer["counts"]) > 1000 and layer["lowest"] < layer["highest"] for layer in layers
    )


def test_pictures_are_made_once_and_again_after_a_change(at_run, monkeypatch):
    from adabm_basicsr.report import versions

    shutil.copytree(RUN, "results/again")
    ran = []
    original = versions._run
    monkeypatch.setattr(versions, "_run", lambda *args: ran.append(args[2]) or original(*args))
    main(["report", "results/again", "--quiet"])
    assert not ran
    (Path("results/again/pictures/Val/static") / "img_001.png").unlink()
    main(["report", "results/again", "--quiet"])
    assert ran == ["static"]
    shutil.rmtree("results/again")


def test_a_run_without_validation_is_shown_on_its_calibration_images(at_run, capsys):
    main(["report", "experiments/tiny", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["sets"]["Calibration"]["versions"]["adaptive"]["self_psnr"] > 20
    assert "psnr" not in figures["sets"]["Calibration"]["versions"]["adaptive"]
    assert figures["crops"] and figures["seconds"].keys() == {"train"}


def test_the_time_of_a_phase_and_its_losses_are_noted(at_run):
    phases = read_record(Path("experiments/tiny"))["phases"]
    names = [phase["name"] for phase in phases]
    assert names[:2] == ["Calibration", "Clipping search"]
    assert names[2:] == [
        f"Fine-tuning {phase}, iterations {first} to {first + 3}"
        for phase, first in (("weight ranges", 1), ("activation ranges", 5), ("bit mappings", 9))
    ]
    assert phases[0]["loss_before"] is None
    for before, after in pairwise(phases):
        assert before["loss_after"] == after["loss_before"]
    assert all(phase["seconds"] > 0 for phase in phases)


MISTAKES = {
    "no run": (["report", "val"], "val holds no run.json: name a folder of one run"),
    "no folder": (["report", "gone"], "gone holds no run.json"),
    "folder of runs": (["report", "experiments"], "test wrote, such as experiments/tiny"),
    "near folder": (["report", "experiments/tinny"], "did you mean 'experiments/tiny'?"),
    "nothing to compare": (["compare", "val"], "val neither is the folder of a run nor holds any"),
    "no model": (["inspect", "gone.pth"], "gone.pth does not exist"),
    "folder of models": (
        ["inspect", "experiments/tiny/models"],
        "tiny/models is a folder: name a file",
    ),
}


@pytest.mark.parametrize(("argv", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(argv, message, at_run, capsys):
    with pytest.raises(SystemExit):
        main(argv)
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written_to_is_named(at_run, capsys):
    shutil.copytree(RUN, "results/full", ignore=shutil.ignore_patterns("report"))
    Path("results/full/report").write_text("in the way")
    with pytest.raises(SystemExit):
        main(["report", "results/full"])
    assert "cannot write to results/full/report: File exists" in capsys.readouterr().err
    shutil.rmtree("results/full")


def test_a_mistake_leaves_no_empty_log(at_run, capsys):
    shutil.copytree(RUN, "results/foreign", ignore=shutil.ignore_patterns("report", "pictures"))
    record = Path("results/foreign/run.json")
    record.write_text(record.read_text().replace(".pth", "_gone.pth"))
    with pytest.raises(SystemExit):
        main(["report", "results/foreign"])
    assert "_gone.pth does not exist" in capsys.readouterr().err
    assert list(Path("results/foreign/report").iterdir()) == []
    shutil.rmtree("results/foreign")


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99}'])
def test_a_damaged_record_is_named(content, tmp_path, capsys):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "run.json" in capsys.readouterr().err


def test_lost_images_and_weights_are_named(at_run, capsys):
    shutil.copytree("results/tiny_test", "results/lost")
    record = json.loads(Path("results/lost/run.json").read_text())
    for change, message in (
        (
            {"kind": "train"},
            "lost holds no models/net_g_latest.pth: finish the run (train --auto_resume) first",
        ),
        ({"directory": "gone"}, "the folder gone that the run was started in is gone"),
        ({"options": _without_images(record["options"])}, "the images of Val in nowhere are gone"),
    ):
        Path("results/lost/run.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(SystemExit):
            main(["report", "results/lost"])
        assert message in capsys.readouterr().err
    shutil.rmtree("results/lost")


def _without_images(options):
    dataset = {**options["datasets"]["test"], "dataroot_lq": "nowhere"}
    return {**options, "datasets": {"test": dataset}}
