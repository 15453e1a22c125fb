"""Plots of a report."""

import cv2
import numpy as np
import pytest

from adabm_basicsr.report.plots import (
    complexity_plot,
    error_plot,
    histogram_plot,
    layer_plot,
    map_colours,
    save_plot,
    settings_plot,
    tradeoff_plot,
)

POINTS = [
    {"run": f"run {number}", "set": "Set5 $\\alpha", "psnr": 30.0, "bitops": 1e9}
    for number in range(5)
]
SETTINGS = [
    {"curve": "8", "w_bits": 4, "bitops_share": 0.03, "self_psnr": 43.0, "knee": True},
    {"curve": "8", "w_bits": 8, "bitops_share": 0.06, "self_psnr": 49.0, "knee": False},
]
PLOTS = {
    "errors": lambda: error_plot({"a": 0.7, "b": 0.3}),
    "settings": lambda: settings_plot(SETTINGS, {"8": "eight", "equal": "as many"}),
    "layers": lambda: layer_plot({"a": 4.0, "b": 8.0}, {"a": 4, "b": 8}),
    "complexity": lambda: complexity_plot({"Val": [(10.0, 4.0), (30.0, 5.0)]}, [12.0, 25.0]),
    "complexity without thresholds": lambda: complexity_plot({"Val": [(10.0, 4.0)]}, None),
    "histogram": lambda: histogram_plot({"A": {"3": 1, "4": 2}, "B": {"5": 4}}),
    "tradeoff": lambda: tradeoff_plot(POINTS),
}


@pytest.mark.parametrize("make", PLOTS.values(), ids=PLOTS)
def test_plots_are_drawn(make, tmp_path):
    save_plot(make, tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 5


def test_a_threshold_that_no_image_is_below_is_not_drawn():
    figure = complexity_plot({"Val": [(10.0, 4.0)]}, [0.0, 25.0])
    lines = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert lines == [25.0]


def test_runs_in_one_place_share_a_label():
    axes = tradeoff_plot(POINTS).axes[0]
    assert [text.get_text() for text in axes.texts] == ["run 0\nrun 1\nrun 2\nand 2 more"]


def test_small_differences_of_quality_do_not_look_large():
    low, high = tradeoff_plot(POINTS).axes[0].get_ylim()
    assert high - low >= 0.2


def test_maps_go_from_least_to_greatest():
    picture = map_colours([[3.0, 4.0], [4.0, 5.0]], scale=2)
    assert picture.shape == (4, 4, 3)
    assert picture[0, 0].sum() < picture[0, 2].sum() < picture[2, 2].sum()
    assert np.array_equal(picture[0, 2], picture[2, 0])
    # One value has the colour of the middle.
    assert np.array_equal(map_colours([[4.0]])[0, 0], picture[0, 2])


@pytest.mark.parametrize(
    "sets", [("Set5",), ("Photographs", "Large"), ("Set5", "Urban100", "B" * 30)]
)
def test_legends_do_not_stick_out(sets):
    points = {name: [(10.0, 4.0)] for name in ("calibration patches", *sets)}
    figure = complexity_plot(points, [12.0, 25.0])
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend().get_window_extent()
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure.bbox.y1
