"""How each figure is written: in the log's lines, in tables and in the report alike."""

from __future__ import annotations

from collections.abc import Callable

MISSING = "–"


def _giga(value: float) -> str:
    return f"{value / 1e9:,.0f} G" if value >= 1e10 else f"{value / 1e9:.3g} G"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB" if value >= 1e5 else f"{value / 1e3:.2f} kB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def format_seconds(value: float | None) -> str:
    """A duration: ``4.2 s``, ``3 min 12 s``."""
    if value is None:
        return MISSING
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


FORMATS: dict[str, Callable[[float], str]] = {
    "bitops": _giga,
    "float_bitops": _giga,
    "weight_bytes": _megabytes,
    "fab": "{:.2f}".format,
    "bitops_share": _percent,
    "size_share": _percent,
    "seconds": format_seconds,
}
NAMES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "self_psnr": "self-PSNR (dB)",
    "niqe": "NIQE",
    "lpips": "LPIPS",
    "fab": "FAB",
}
NAMES |= {
    "bitops": "BitOPs",
    "weight_bytes": "size",
    "bitops_share": "of full",
    "size_share": "of full",
}


def format_figure(name: str, value: float | None) -> str:
    """A figure by its name in ``run.json``; four digits of those that the options name themselves."""
    return MISSING if value is None else FORMATS.get(name, "{:.4f}".format)(value)


def title(name: str) -> str:
    """What a figure is called in tables."""
    return NAMES.get(name, name.replace("_", " "))
