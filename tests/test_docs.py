"""The documentation's snippets and commands run, and what it names exists."""

import ast
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import clip_networks  # noqa: F401 - registers them
import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataset
from clip_files import moving, write_clips, write_video
from conftest import write_images
from test_readme import snippets

from adabm_basicsr import calibrate, save_checkpoint, save_packed
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.commands.main import main
from adabm_basicsr.quantization.structure.clips import find_least

ROOT = Path(__file__).parents[1]
PROJECT = Path(__file__).parent / "example_project"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
# Pages with figures in dB.
MEASURED = ("README.md", "ablation.md", "deploy.md", "integers.md", "results.md")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\(([^)#\s:]*)#([^)]+)\)")


def read(name):
    return (ROOT / "docs" / name).read_text()


@pytest.fixture
def run_snippet(capsys):
    """Runs a snippet and returns what it prints."""

    def run(snippet):
        exec(snippet, {"__name__": "snippet"})
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    local = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert all((page.parent / link).exists() for link in local), local


def test_every_page_can_be_reached_from_the_readme():
    linked = {link for page in PAGES for link in LINK.findall(page.read_text())}
    assert {page.name for page in DOCS} <= {Path(link).name for link in linked}


def anchors(page):
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_lead_to_headings(page):
    for name, anchor in ANCHOR.findall(page.read_text()):
        target = page.parent / name if name else page
        assert anchor in anchors(target), f"{name}#{anchor}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name in MEASURED], ids=lambda page: page.name
)
def test_tables_of_accuracy_say_how_many_seeds(page):
    tables = re.findall(r"(?:^\|.*\n)+", page.read_text(), re.M)
    measured = [table for table in tables if re.search(r"\d dB", table)]
    assert measured
    for table in measured:
        assert "| seeds |" in table.splitlines()[0], table


def yaml_snippets():
    """The YAML that the pages show, but comments alone."""
    shown = [
        yaml.safe_load(snippet) for page in PAGES for snippet in snippets("yaml", page.read_text())
    ]
    return [options for options in shown if options]


def test_every_key_is_shown():
    from adabm_basicsr import QuantizationConfig
    from adabm_basicsr.models.setup import TRAIN_OPTIONS

    options = yaml.safe_load(snippets("yaml", read("options.md"))[0])
    assert set(options["network_g"]) == {
        "type",
        "network",
        "custom_imports",
        *QuantizationConfig.__dataclass_fields__,
    }
    assert set(options["train"]) == set(TRAIN_OPTIONS)
    for other in yaml_snippets():
        assert set(other.get("network_g", {})) <= set(options["network_g"])


def test_keys_that_are_shown_run(workspace):
    shown = yaml.safe_load(snippets("yaml", read("options.md"))[0])
    network = {**shown["network_g"], "network": workspace.network_options()["network"]}
    data = {**workspace.train_options()["datasets"]["train"], **shown["datasets"]["train"]}
    train = {
        "datasets__train": {**data, "dataroot_lq": "lr", "lq_size": 24},
        "train": shown["train"],
    }
    train["train"]["total_iter"] = 3
    workspace.train(network_g=network, **train)


def test_commands_for_reports_run(at_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("experiments", "results"):
        shutil.copytree(at_run / folder, folder)
    shutil.copy("experiments/tiny/models/net_g_latest.pth", ".")
    commands = re.findall(
        r"^adabm-basicsr ((?:report|compare|inspect) .*)$", read("running.md"), re.M
    )
    assert len(commands) == 3
    for command in commands:
        main(shlex.split(command.replace("NAME", "tiny_test"), comments=True))
    assert Path("results/tiny_test/report/report.html").is_file()
    assert Path("comparison/compare.html").is_file()


def test_drawing_is_fit_for_light_and_dark():
    text = read("method.svg")
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text


def test_method_snippet_shows_bits_of_two_images(run_snippet):
    printed = run_snippet(snippets("python", read("method.md"))[0])
    assert "tensor([3., 5." in printed


def test_published_method_gives_what_its_formulas_give(run_snippet):
    """The blocks compare as they go; later ones use what earlier ones made."""
    blocks = snippets("python", read("paper.md"))
    assert "assert_close" in blocks[-1]
    run_snippet("\n".join(blocks))


def test_published_method_names_functions_of_the_files():
    links = re.findall(r"\[`(\w+)`\]\((\S+?\.py)\)", read("paper.md"))
    assert links
    for name, path in links:
        source = (ROOT / "docs" / path).read_text()
        assert re.search(rf"^(def|class) {name}\b|^{name} = ", source, re.M), (name, path)


def test_static_and_adaptive_are_compared(run_snippet):
    static, adaptive = map(float, run_snippet(snippets("python", read("moving.md"))[0]).split())
    assert 0 < adaptive < static


def test_moving_names_options_that_exist():
    from adabm_basicsr import FinetuneSettings, QuantizationConfig
    from adabm_basicsr.quantization.recipes import OBSERVERS, RECIPES

    text, paper = read("moving.md"), RECIPES["paper"].finetuning
    for ingredients in re.findall(r"`ingredients: (\{.*?\})`", text):
        QuantizationConfig(recipe="paper", ingredients=yaml.safe_load(ingredients))
    assert set(re.search(r"`observer: (\w+)`, `(\w+)` or `(\w+)`", text).groups()) == set(OBSERVERS)
    names, values = re.search(r"learning_rates: (.*?) \| (.*?) \|", text).groups()
    documented = dict(
        zip(re.findall(r"\w+_\w+", names), map(float, values.split(", ")), strict=True)
    )
    assert documented == paper.learning_rates
    assert "| 50, 10 |" in text
    assert FinetuneSettings().bit_weight == 50
    assert paper.feature_weight == 10
    assert "500 | 400 |" in text
    assert paper.iterations == 400


def test_every_recipe_has_its_column():
    from adabm_basicsr.quantization.recipes import RECIPES

    header = next(line for line in read("method.md").splitlines() if line.startswith("| step"))
    assert set(re.findall(r"`(\w+)`", header)) == set(RECIPES)


def template(node):
    """A string of the sources as the page quotes it, ``...`` for what is put in.

    None for a node that is no string.
    """
    if isinstance(node, ast.JoinedStr):
        text = ""
        for part in node.values:
            text += part.value if isinstance(part, ast.Constant) else "..."
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    else:
        return None
    return re.sub(r"\.{3,}", "...", text)


def test_quoted_errors_are_those_of_the_sources():
    sources = [ast.parse(path.read_text()) for path in (ROOT / "adabm_basicsr").rglob("*.py")]
    texts = {template(node) for tree in sources for node in ast.walk(tree)} - {None}
    quoted = re.findall(r"^\| `(.*?)` \| \S", read("troubleshooting.md"), re.M)
    assert quoted
    assert len(quoted) == len(set(quoted))
    assert [text for text in quoted if not any(whole.startswith(text) for whole in texts)] == []


def test_api_reference_is_current():
    """``python docs/generate_api.py`` writes it."""
    names = runpy.run_path(str(ROOT / "docs" / "generate_api.py"))
    assert read("api.md") == names["render"]()


@pytest.fixture
def results_of_accuracy():
    """``python docs/generate_results.py`` takes the one and writes the other."""
    names = runpy.run_path(str(ROOT / "docs" / "generate_results.py"))
    return names["render_page"], json.loads(read("accuracy.json"))


def test_tables_of_accuracy_are_current(results_of_accuracy):
    render_page, results = results_of_accuracy
    assert render_page(read("results.md"), results) == read("results.md")


def test_table_of_adaptivity_is_current():
    """``python docs/generate_adaptivity.py`` writes it."""
    names = runpy.run_path(str(ROOT / "docs" / "generate_adaptivity.py"))
    page = read("adaptivity.md")
    assert names["render_page"](page, json.loads(read("adaptivity.json"))) == page


def test_a_run_is_shown_once_it_is_there(results_of_accuracy):
    """A run of a network that has no line yet, in the table of accuracy and beside published."""
    render_page, results = results_of_accuracy
    run = dict(next(iter(results["runs"].values())))
    run.update(network="SwinIR", scope="body", bits="W2A2", variant="best", date="2030-01-01")
    results["runs"]["new"] = run
    page = render_page(read("results.md"), results)
    assert "| SwinIR x4 | body | best | W2A2 |" in page
    assert "| SwinIR x4 | W2A2 | ours, `best` | body |" in page


@pytest.fixture
def own_project(tmp_path, monkeypatch):
    """A copy of the example project with random weights and tiny images; its runs take seconds."""
    folder = tmp_path / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    # custom_imports puts the working directory there.
    monkeypatch.setattr(sys, "path", list(sys.path))
    net = AdaBMNetwork(network=shown_options()["network"], custom_imports=["inhouse.archs"])
    save_weights(net.base_state(), folder / "weights" / "PooledAttention_x2.pth")
    write_images(folder / "photos", [(40, 48)] * 2)
    for name in ("Set5", "Set14"):
        write_images(folder / "datasets" / name / "LRbicx2", [(16, 20)])
        write_images(folder / "datasets" / name / "GTmod12", [(32, 40)])
    shorten_run(folder / "options" / "train_AdaBM_PooledAttention_x2_W8A8.yml")
    return folder


def shown_options():
    """The section ``network_g`` that the page shows."""
    return yaml.safe_load(snippets("yaml", read("your_network.md"))[0])["network_g"]


def save_weights(state, path):
    path.parent.mkdir()
    torch.save({"params": state}, path)


def shorten_run(path):
    opt = yaml.safe_load(path.read_text())
    opt["num_gpu"] = 0
    opt["train"]["total_iter"] = 3
    opt["datasets"]["train"]["lq_size"] = 16
    path.write_text(yaml.safe_dump(opt))


# By default each command is run by its own tests.
@pytest.mark.slow
def test_own_network_step_by_step(own_project):
    page = read("your_network.md")
    trained = yaml.safe_load(Path("options/train_AdaBM_PooledAttention_x2_W8A8.yml").read_text())
    assert trained["network_g"] == shown_options()
    for command in re.findall(r"^adabm-basicsr (.*)$", page, re.M):
        main(shlex.split(command))
    assert len(list(Path("upscaled").iterdir())) == 2
    Path("shown.yml").write_text(snippets("yaml", page)[0])
    shorten_run(Path("shown.yml"))
    main(["train", "-opt", "shown.yml"])


def test_own_network_snippets(own_project, run_snippet):
    registered, looked_at = snippets("python", read("your_network.md"))
    shape = "import torch\nprint(tuple(MyNetwork()(torch.rand(1, 3, 8, 9)).shape))"
    assert "(1, 3, 16, 18)" in run_snippet(f"{registered}\n{shape}")
    printed = run_snippet(looked_at)
    assert "['blocks.0', 'blocks.1', 'blocks.2', 'blocks.3']" in printed
    assert "of the MACs" in printed


def test_clips_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "film.mp4", moving(12, 48, 64))
    for command in re.findall(r"^adabm-basicsr (prepare .*)$", read("video.md"), re.M):
        main(shlex.split(command))
    assert len(list(Path("datasets/calibration/film_LRbicx4/film").iterdir())) == 8
    assert len(list(Path("datasets/test/GT/film").iterdir())) == 4
    options = yaml.safe_load(snippets("yaml", read("video.md"))[0])["train"]
    batches = build_dataset(options).calibration_batches(4)
    assert [tuple(batch.shape) for batch in batches] == [(4, 5, 3, 64, 64)] * 4
    network = build_network({"type": "BasicVSR", "num_feat": 8, "num_block": 1})
    assert find_least(network, batches[0][:1]) is None


@pytest.mark.slow
def test_clips_are_exported_and_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = {"type": "BasicVSR", "num_feat": 8, "num_block": 1}
    net = AdaBMNetwork(network=network, fully_quantized=True, recipe="static")
    save_checkpoint(calibrate(net, [torch.rand(1, 3, 3, 34, 36)]), "net_g_latest.pth")
    write_clips(tmp_path / "films", 1, 3, 34, 36)
    section = read("video.md").partition("\n## Export\n")[2]
    for command in re.findall(r"^adabm-basicsr (.*)$", section, re.M):
        main(shlex.split(command, comments=True))
    low = [cv2.imread(str(path)) for path in sorted(Path("films/000").iterdir())]
    frames = [np.float32(frame[..., ::-1].transpose(2, 0, 1)[None] / 255) for frame in low]
    (snippet,) = snippets("python", section)
    names = {}
    exec(snippet, names)
    made = names["upscale"](frames)
    assert len(made) == 3
    for frame, path in zip(made, sorted(Path("by_onnx/000").iterdir()), strict=True):
        pixels = frame[0].clip(0, 1).transpose(1, 2, 0) * 255
        assert np.abs(cv2.imread(str(path))[..., ::-1] - pixels).mean() < 0.6


def test_clips_are_super_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = AdaBMNetwork(network={"type": "CarriesOn"}, fully_quantized=True, recipe="static")
    save_packed(calibrate(net, [torch.rand(1, 5, 3, 16, 20)]), "net_g_latest.safetensors")
    write_clips(tmp_path / "films", 2, 3)
    section = read("video.md").partition("\n## Export\n")[0]
    for command in re.findall(r"^adabm-basicsr (upscale .*)$", section, re.M):
        main(shlex.split(command, comments=True))
    assert len(list(Path("upscaled").glob("00[01]/*.png"))) == 6
