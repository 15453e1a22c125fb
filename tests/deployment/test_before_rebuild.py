"""Files from before the rebuild load, and their networks give the same pixels."""

from pathlib import Path

import cv2
import pytest
import torch

from adabm_basicsr import load_network
from adabm_basicsr.deployment.onnx.reading import read_file, stored_layers

pytestmark = pytest.mark.numeric

TESTS = Path(__file__).parents[1]
FIXTURES = TESTS / "fixtures" / "before_rebuild"
CLASSES = {"simple": 0, "middle": 1, "complex": 2}
NETWORKS = ("edsr_best", "edsr_paper", "imdn_best", "swinir_best")
FILES = sorted(path.name for path in FIXTURES.iterdir() if path.suffix not in (".png", ".md"))
MOST_DIFFERING = 0.001  # of all values, by one step of eight bits: sums of floats vary with the CPU


def read(name):
    """An image of the fixtures, ``(1, 3, H, W)`` in 0..1."""
    pixels = cv2.imread(str(FIXTURES / name))[..., ::-1].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def pixels_of(image):
    """As whole numbers, in 0..255."""
    return (image.clamp(0, 1) * 255).round().int()


@pytest.fixture
def load(monkeypatch):
    """Load a fixture by its name; in ONNX Runtime, whose arithmetic doesn't depend on the CPU."""
    monkeypatch.syspath_prepend(TESTS / "example_project")

    def load_fixture(name):
        return load_network(FIXTURES / name, ["inhouse.archs"], runtime="onnxruntime")

    return load_fixture


@pytest.mark.parametrize("image", CLASSES)
@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_a_file_gives_the_pixels_that_it_gave(name, image, load):
    output = load(name)(read(f"{image}.png"))
    before = read(f"{Path(name).stem}_{image}.png")
    difference = (pixels_of(output) - pixels_of(before)).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= MOST_DIFFERING


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_packed_and_checkpoint_are_one_network(name, load):
    packed = load(f"{name}.safetensors")
    checkpoint = load(f"{name}.pth")
    image = read("middle.png")
    assert torch.equal(packed(image), checkpoint(image))
    assert packed.description == checkpoint.description


@pytest.mark.parametrize("image", CLASSES)
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".onnx")])
def test_graphs_choose_the_class_that_they_chose(name, image, load):
    assert load(name).level(read(f"{image}.png")) == CLASSES[image]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".onnx")])
def test_graphs_are_whole_and_say_what_they_hold(name, load):
    file = read_file(FIXTURES / name)
    network = load(f"{Path(name).stem}.pth")
    assert file.is_whole
    # Options that came later aren't in the file.
    assert file.description["options"].items() <= network.description["options"].items()
    assert len(stored_layers(file.model)) == len(network.weight_quantizers())
