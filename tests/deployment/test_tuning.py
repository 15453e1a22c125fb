"""The form of a file that is fastest on this machine."""

import json

import onnx
import pytest
import torch
from agreement import quantized, smooth
from conftest import TINY_EDSR
from onnx import helper

from adabm_basicsr import save_checkpoint, save_onnx
from adabm_basicsr.commands.main import main
from adabm_basicsr.deployment.engines import EXPORTS
from adabm_basicsr.deployment.load import load_network
from adabm_basicsr.deployment.onnx.seal import sealed
from adabm_basicsr.deployment.tuning import TriedForm, choose, fastest_form, table
from adabm_basicsr.errors import ExportError
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

pytestmark = pytest.mark.runtimes


@pytest.mark.parametrize("engine", ["openvino", "openvino_uint8"])
def test_the_file_has_the_form_that_was_chosen(engine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = quantized(TINY_EDSR, engine=engine, recipe="fast", w_bits=8, a_bits=8)
    save_checkpoint(net, "net.pth")
    main(["export", "-m", "net.pth", "--for", engine, "--tune"])
    _, heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["form", "milliseconds", "agreement"]
    rows = [line.split() for line in lines[: len(EXPORTS[engine].forms)]]
    assert [row[0] for row in rows] == list(EXPORTS[engine].forms)
    assert min(float(row[1]) for row in rows) > 0
    chosen = [row for row in rows if row[-1] == "chosen"]
    assert len(chosen) == 1
    assert float(chosen[0][2]) >= 50

    main(["inspect", "net.onnx", "--json"])
    assert json.loads(capsys.readouterr().out)["facts"]["form"] == chosen[0][0]
    image = smooth(1)
    with torch.no_grad():
        assert pixel_psnr(load_network("net.onnx")(image), net(image)) >= 50


def test_forms_are_tried_on_integers():
    net = quantized(TINY_EDSR, recipe="static")
    net.keep_images_in_float(0.0)
    tried_on = []

    def save(tried, path, form):
        tried_on.append(tried.full_precision_above)
        save_onnx(tried, path, form=form)

    fastest_form(net, save, ("openvino",))
    assert tried_on == [None]
    assert net.full_precision_above == 0


def tried(form, agreement, *times):
    return TriedForm(form, None, agreement, list(times))


def test_forms_that_make_other_pixels_are_left_out():
    forms = [tried("a", 60, 9, 30, 10), tried("b", 49, 1, 1, 1), tried("c", 80, 8, 9, 7)]
    assert choose(forms) == "c"
    assert table(forms) == [
        "form  milliseconds  agreement",
        "a             10.0    60.0 dB",
        "b              1.0    49.0 dB  below 50 dB",
        "c              8.0    80.0 dB  chosen",
    ]
    assert choose(forms[1:2]) == "b"


def test_forms_that_do_not_compile_are_left_out():
    net = quantized(TINY_EDSR, w_bits=8, a_bits=8)

    def save(net, path, form):
        save_onnx(net, path)
        if form != "openvino":
            break_graph(path)

    form, lines = fastest_form(net, save, ["other", "openvino"])
    assert form == "openvino"
    assert lines[-1].startswith("other: OpenVINO can't compile the graph: ")
    with pytest.raises(ExportError, match=r"^other: OpenVINO can't compile"):
        fastest_form(net, save, ["other"])


def break_graph(path):
    """End the graph in an operator that no runtime has, under a checksum that is right."""
    model = onnx.load(path)
    del model.metadata_props[1:]
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    for node in model.graph.node:
        node.output[:] = ["whole" if name == "output" else name for name in node.output]
    model.graph.node.append(helper.make_node("Unknown", ["whole"], ["output"], domain="nowhere"))
    path.write_bytes(sealed(model.SerializeToString()))
