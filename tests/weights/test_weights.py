"""The small trained networks that benchmarks measure on."""

from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from to_half import to_half

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.pth"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_weights_are_those_of_the_network_that_the_option_file_trains(file):
    options = yaml.safe_load((FOLDER / f"train_{file.stem}.yml").read_text())
    network = options["network_g"]
    network.pop("custom_imports", None)
    network["type"] = network["type"].removeprefix("Quick")
    net = build_network(network)
    weights = torch.load(file, weights_only=True)["params"]
    net.load_state_dict(weights, strict=True)
    for name, value in net.state_dict().items():
        assert value.isfinite().all(), name


def test_files_are_small():
    assert sum(file.stat().st_size for file in FILES) < 6e6


def test_equal_tensors_are_written_once(tmp_path):
    state = {"a": torch.rand(64, 64), "n": torch.arange(200)}
    state["b"] = state["a"].clone()
    halves = to_half(state)
    assert halves["a"].data_ptr() == halves["b"].data_ptr()
    assert halves["n"].dtype == torch.int64  # not all fit a byte
    torch.testing.assert_close(halves["a"].float(), state["a"], atol=1e-3, rtol=0)
    torch.save(halves, tmp_path / "halves.pth")
    assert (tmp_path / "halves.pth").stat().st_size < 64 * 64 * 3


def test_small_whole_numbers_are_written_as_bytes():
    mask = torch.tensor([[0.0, -100.0], [127.0, -128.0]])
    halves = to_half({"mask": mask, "shifted": mask + 0.5})
    assert halves["mask"].dtype == torch.int8
    assert torch.equal(halves["mask"].float(), mask)
    assert halves["shifted"].dtype == torch.float16
