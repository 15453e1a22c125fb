"""How each figure is written: in the log's lines, in tables and in the report alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adabm_basicsr.terminal import say

MISSING = "–"


def format_seconds(value: float | None) -> str:
    """A duration: ``4.2 s``, ``3 min 12 s``."""
    if value is None:
        return MISSING
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s"


def format_percent(share: float) -> str:
    """A share of 1 in percent."""
    return f"{100 * share:.1f} %"


def _giga(value: float) -> str:
    if value >= 1e10:
        return f"{value / 1e9:,.0f} G"
    return f"{value / 1e9:.3g} G"


def _megabytes(value: float) -> str:
    if value >= 1e5:
        return f"{value / 1e6:.2f} MB"
    return f"{value / 1e3:.2f} kB"


FORMATS: dict[str, Callable[[float], str]] = {
    "bitops": _giga,
    "float_bitops": _giga,
    "weight_bytes": _megabytes,
    "fab": "{:.2f}".format,
    "bitops_share": format_percent,
    "size_share": format_percent,
    "seconds": format_seconds,
}
NAMES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "self_psnr": "self-PSNR (dB)",
    "niqe": "NIQE",
    "lpips": "LPIPS",
    "fab": "FAB",
    "bitops": "BitOPs",
    "weight_bytes": "size",
    "bitops_share": "of full",
    "size_share": "of full",
}


def format_figure(name: str, value: float | None) -> str:
    """A figure by its name in ``run.json``.

    Metrics that the options name themselves have four digits.
    """
    if value is None:
        return MISSING
    write = FORMATS.get(name, "{:.4f}".format)
    return write(value)


def title(name: str) -> str:
    """What a figure is called in tables."""
    return NAMES.get(name, name.replace("_", " "))


def say_figures(label: str, figures: Mapping[str, float]) -> None:
    """Report the metrics of a set in a line."""
    shown = [f"{name} {format_figure(name, value)}" for name, value in figures.items()]
    say(f"Report: {label}: {', '.join(shown)}")
