"""The accuracy benchmark's runs are valid options, and its table says what was measured."""

import itertools
import sys

import accuracy
import pytest
from networks import NETWORKS

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork


@pytest.mark.parametrize("variant", accuracy.VARIANTS)
def test_every_variant_builds(variant):
    accuracy.make_example_project_importable()
    network = accuracy.options("IMDN", "W4A4", variant, seed=1)["network_g"]
    network.pop("type")
    net = AdaBMNetwork(**network)
    assert net.config.arithmetic.integer is not (variant == "paper" or "published" in variant)


def test_names_of_runs_differ():
    cases = list(itertools.product(NETWORKS, ("W4A4", "W4A8"), accuracy.VARIANTS))
    names = {accuracy.options(*case, seed=1)["name"] for case in cases}
    assert len(names) == len(cases)


def test_bits_that_are_none_are_rejected_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--out", "out", "--bits", "4"])
    with pytest.raises(SystemExit):
        accuracy.read_arguments()
    assert "--bits: '4' names no bits; valid: W8A8, W4A8, W4A4, ..." in capsys.readouterr().err


def test_table_averages_over_seeds(tmp_path):
    def run(seed, psnr):
        figures = {
            "psnr": psnr,
            "full_precision_psnr": 31.0,
            "ssim": 0.9,
            "self_psnr": 40.0,
            "fab": 4.0,
            "bitops": 1e12,
        }
        return {
            "network": "EDSR",
            "bits": "W4A4",
            "variant": "best",
            "seed": seed,
            "bytes": 1e6,
            "units": 4000,
            "sets": dict.fromkeys((*accuracy.SETS, "calibration"), figures),
        }

    runs = {"a": run(1, 30.8), "b": run(2, 30.6)}
    line = accuracy.make_table(runs).splitlines()[-1]
    assert "0.300 ± 0.141" in line
    assert "| 2 " in line
    assert "4000" in line
    accuracy.plot(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
