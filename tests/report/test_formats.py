"""How figures are written."""

import pytest

from adabm_basicsr.report.formats import format_figure, title


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("psnr", 28.90381, "28.9038"),
        ("fab", 3.999, "4.00"),
        ("bitops", 31_867e9, "31,867 G"),
        ("bitops", 0.2016e9, "0.202 G"),
        ("weight_bytes", 925_000, "0.93 MB"),
        ("weight_bytes", 4_630, "4.63 kB"),
        ("bitops_share", 0.0338, "3.4 %"),
        ("seconds", 4.21, "4.2 s"),
        ("seconds", 192.4, "3 min 12 s"),
        ("seconds", 7_500, "2 h 5 min"),
        ("seconds", None, "–"),
        ("my_metric", None, "–"),
    ],
)
def test_figures(name, value, text):
    assert format_figure(name, value) == text


def test_titles():
    assert title("self_psnr") == "self-PSNR (dB)"
    assert title("full_precision") == "full precision"
