"""The benchmark of what adaptivity is worth: its choices are the best within the bits."""

import itertools
import json
import re
import sys

import adaptivity
import networks
import pytest
import torch
from adaptivity import (
    ALL,
    CLASSES,
    COLUMNS,
    GOALS,
    OPTIONS,
    Option,
    choose,
    gains,
    measure,
    run_with,
)
from conftest import photographs, write_images

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.bit_mapping import image_complexity


@pytest.mark.parametrize("seed", range(5))
def test_choices_are_the_cheapest_within_the_bits(seed):
    torch.manual_seed(seed)
    bits = torch.tensor([3.0, 4.0, 5.0])
    costs = torch.rand(5, 3).sort(descending=True).values  # more bits err less
    sizes = torch.ones(5)
    chosen = choose(costs, bits, sizes, mean=4.0)
    assert bits[chosen].mean() <= 4

    found = costs.gather(1, chosen.unsqueeze(1)).sum()
    used = float(bits[chosen].sum())
    for other in itertools.product(range(3), repeat=5):
        of_other = torch.tensor(other)
        if bits[of_other].sum() <= used:
            # A price of bits gives the best of all choices that use no more of them.
            assert costs.gather(1, of_other.unsqueeze(1)).sum() >= found - 1e-6


def test_a_tile_of_a_large_class_costs_as_much_as_one_of_a_small_class():
    costs = torch.tensor([[2.0, 1.0], [2.0, 0.9]])
    bits = torch.tensor([4.0, 5.0])
    chosen = choose(costs, bits, sizes=torch.tensor([9.0, 1.0]), mean=4.5)
    assert chosen.tolist() == [0, 1]


def test_tiles_show_all_images_evenly():
    images = [torch.full((1, 3, 16, 24), 0.1), torch.full((1, 3, 9, 8), 0.2)]
    assert adaptivity.cut(images, 8, 100).mean((1, 2, 3)).tolist() == pytest.approx(
        [0.1] * 6 + [0.2]
    )
    assert len(adaptivity.cut(images, 8, 3)) == 4


def test_what_errs_less_by_class_is_found():
    """Complex tiles err least with wide ranges, simple ones with narrow ranges."""
    tiles = 60
    complexity = torch.arange(tiles).double()
    errors = torch.full((tiles, len(OPTIONS)), 9.0, dtype=torch.float64)
    narrow = OPTIONS.index(Option(0, 0.8))
    wide = OPTIONS.index(Option(0, 1.25))
    simple = complexity < tiles / CLASSES
    errors[simple, narrow] = 1.0
    errors[~simple, wide] = 1.0
    bits = torch.tensor([4.0 + option.bits for option in OPTIONS])
    lines = gains(errors, bits, complexity)
    for goal in GOALS:
        assert lines["one range for all"][goal] < lines["ranges by class"][goal]
        assert lines["ranges by class"][goal] == pytest.approx(lines["ranges by tile"][goal])
        assert lines["ranges by tile"][goal] <= lines["ranges and bits by tile"][goal]


def test_a_network_is_measured_with_all_options_and_stays_as_it_was(tiny):
    images = photographs(4, 16)
    net = quantize(
        tiny,
        images[:1],
        recipe="fast",
        ingredients=adaptivity.UNMAPPED,
    )
    calibrate(net, [images])
    before = net(images)
    errors, bits = measure(net, images)
    assert torch.equal(net(images), before)
    assert errors.shape == (4, len(OPTIONS))
    assert bits[OPTIONS.index(Option(1, 1.0))] == bits[OPTIONS.index(Option(0, 1.0))] + 1

    with run_with(net, Option(0, 1.6)):
        assert not torch.equal(net(images), before)
    lines = gains(errors, bits, image_complexity(images))
    for name in adaptivity.CHOICES:
        assert set(lines[f"{name} by class"]) == set(GOALS)
    assert len(ALL) == len(OPTIONS)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the benchmark on a tiny EDSR with tiny images; returns what it keeps."""
    from basicsr.archs import build_network

    arguments = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}
    monkeypatch.setitem(networks.NETWORKS, "EDSR", arguments)
    monkeypatch.setattr(networks, "SHARED", tmp_path)
    monkeypatch.setattr(adaptivity, "TILES_AT_ONCE", 64)
    monkeypatch.chdir(tmp_path)
    write_images(networks.calibration_folder(), [(64, 72)] * 4)
    networks.weights_path("EDSR").parent.mkdir()
    net = build_network({"type": "EDSR", **arguments, "upscale": 4})
    torch.save({"params": net.state_dict()}, networks.weights_path("EDSR"))

    def run_with(*flags):
        command = ["adaptivity.py", "--out", "out", "--networks", "EDSR", "--tile", "8"]
        monkeypatch.setattr(sys, "argv", [*command, *flags])
        adaptivity.main()
        return json.loads((tmp_path / "out" / "adaptivity.json").read_text())

    return run_with


def test_sets_are_measured_without_a_mapping_and_with_the_recipes(run, tmp_path, capsys):
    first = tmp_path / "Set14" / "LRbicx4"
    second = tmp_path / "photographs"
    write_images(first, [(40, 80)])
    write_images(second, [(32, 64)] * 2)
    runs = run("--bits", "W4A4", "--images", str(first), str(second))
    assert list(runs) == ["EDSR, W4A4, seed 1", "EDSR, W4A4, seed 1, the recipe's mapping"]
    unmapped, mapped = runs.values()
    assert {name: found["tiles"] for name, found in unmapped["sets"].items()} == {
        "Set14": 50,
        "photographs": 64,
    }
    assert mapped["sets"]["Set14"]["fab"] <= 4
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert cells[0] == ["network", "bits", "images", *COLUMNS, "seeds"]
    assert [row[:3] for row in cells[2:]] == [
        ["EDSR x4", "W4A4", "Set14"],
        ["EDSR x4", "W4A4", "photographs"],
    ]
    for row in cells[2:]:
        assert all(re.fullmatch(r"[\d.]+ / [\d.]+ dB", cell) for cell in row[3:-1])


def test_too_few_tiles_are_rejected(run, tmp_path, capsys):
    write_images(tmp_path / "few", [(32, 48)])
    with pytest.raises(SystemExit):
        run("--bits", "W4A4", "--images", str(tmp_path / "few"))
    assert "has 24 tiles; at least 50 are needed" in capsys.readouterr().err
