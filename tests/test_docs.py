"""The documentation's snippets and commands run, and what it names exists."""

import ast
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from conftest import write_images
from test_readme import snippets

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.commands.main import main

ROOT = Path(__file__).parents[1]
PROJECT = Path(__file__).parent / "example_project"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


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
    assert {page.name for page in PAGES[:-2]} <= {Path(link).name for link in linked}


def test_drawing_is_fit_for_light_and_dark():
    text = read("method.svg")
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text


def test_method_snippet_shows_bits_of_two_images(run_snippet):
    printed = run_snippet(snippets("python", read("method.md"))[0])
    assert "tensor([3., 5." in printed


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
    told = dict(zip(re.findall(r"\w+_\w+", names), map(float, values.split(", ")), strict=True))
    assert told == paper.learning_rates
    assert "| 50, 10 |" in text and (FinetuneSettings().bit_weight, paper.feature_weight) == (
        50,
        10,
    )
    assert "500 | 400 |" in text and paper.iterations == 400


def test_every_recipe_has_its_column():
    from adabm_basicsr.quantization.recipes import RECIPES

    header = next(line for line in read("method.md").splitlines() if line.startswith("| step"))
    assert set(re.findall(r"`(\w+)`", header)) == set(RECIPES)


def template(node):
    """A string of the sources as the page quotes it, ``...`` for what is put in; None for another node."""
    if isinstance(node, ast.JoinedStr):
        text = "".join(
            part.value if isinstance(part, ast.Constant) else "..." for part in node.values
        )
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    else:
        return None
    return re.sub(r"\.{3,}", "...", text)


def variants(node):
    """Every text that an expression of the sources can be, as the page quotes it."""
    if isinstance(node, ast.IfExp):
        return variants(node.body) + variants(node.orelse)
    if isinstance(node, ast.BinOp):
        return [left + right for left in variants(node.left) for right in variants(node.right)]
    return [template(node) or "..."]


@pytest.fixture(scope="module")
def raised():
    """First arguments of all errors that the sources raise; of those for absent paths, what becomes of it."""
    sources = [ast.parse(path.read_text()) for path in (ROOT / "adabm_basicsr").rglob("*.py")]
    calls = [node for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Call)]
    absent = [node.args[0] for node in calls if getattr(node.func, "id", "") == "not_found"]
    texts = [ast.Constant(f"{template(what)} ... does not exist".strip()) for what in absent]
    return texts + [node.args[0] for node in calls if getattr(node.func, "id", "") == "AdaBMError"]


@pytest.fixture(scope="module")
def quoted():
    return re.findall(r"^\| `(.*?)` \| \S", read("troubleshooting.md"), re.M)


def test_quoted_errors_are_those_of_the_sources(raised, quoted):
    texts = {template(node) for error in raised for node in ast.walk(error)} - {None}
    assert len(quoted) == len(set(quoted)) > 100
    assert [text for text in quoted if not any(whole.startswith(text) for whole in texts)] == []


def test_every_error_has_its_row(raised, quoted):
    """Texts without a word of their own pass another error's on."""
    texts = [text for error in raised for text in variants(error) if re.search("[a-z]", text)]
    assert [text for text in texts if not text.startswith(tuple(quoted))] == []


def test_api_reference_is_current():
    """``python docs/generate_api.py`` writes it."""
    names = runpy.run_path(str(ROOT / "docs" / "generate_api.py"))
    assert read("api.md") == names["render"]()


@pytest.fixture
def own_project(tmp_path, monkeypatch):
    """A copy of the example project with random weights and tiny images; its runs take seconds."""
    folder = tmp_path / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        sys, "path", list(sys.path)
    )  # custom_imports puts the working directory there
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
    opt["num_gpu"], opt["train"]["total_iter"], opt["datasets"]["train"]["lq_size"] = 0, 3, 16
    path.write_text(yaml.safe_dump(opt))


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
    assert (
        "['blocks.0', 'blocks.1', 'blocks.2', 'blocks.3']" in printed and "of the MACs" in printed
    )
