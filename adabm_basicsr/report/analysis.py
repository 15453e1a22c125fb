"""The page of an analysis: what quantization would come to, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from adabm_basicsr.quantization.calibration.analysis import Analysis
from adabm_basicsr.report.build import write_tables
from adabm_basicsr.report.formats import format_percent
from adabm_basicsr.report.page import write_tables_page
from adabm_basicsr.report.plots import error_plot, save_plot, settings_plot
from adabm_basicsr.report.tables import Table, Writer, rows_of
from adabm_basicsr.runs.record import plain, write_json

CURVES = {"8": "activations of 8 bits", "equal": "as many bits as the weights"}
decibels = "{:.1f}".format

LAYER_COLUMNS: dict[str, tuple[str, Writer]] = {
    "layer": ("name", str),
    "role": ("role", str),
    "MACs": ("macs_share", format_percent),
    "8 bits (dB)": ("psnr_8", decibels),
    "6 bits (dB)": ("psnr_6", decibels),
    "4 bits (dB)": ("psnr_4", decibels),
    "of the error": ("error_share", format_percent),
    "by its input": ("input_share", format_percent),
}
SETTING_COLUMNS: dict[str, tuple[str, Writer]] = {
    "w bits": ("w_bits", str),
    "a bits": ("a_bits", str),
    "self-PSNR (dB)": ("self_psnr", decibels),
    "BitOPs": ("bitops_share", format_percent),
    "size": ("size_share", format_percent),
    "": ("mark", str),
}
WAY_COLUMNS: dict[str, tuple[str, Writer]] = {
    "wanted (dB)": ("wanted", "{:g}".format),
    "network_g:": ("options", str),
    "estimate (dB)": ("self_psnr", decibels),
    "why": ("why", str),
}


def analysis_figures(opt: Mapping[str, Any], analysis: Analysis) -> dict[str, Any]:
    """The figures of an analysis, as ``analysis.json`` has them.

    Args:
        opt: Options of the run that was analysed.
        analysis: What was found.
    """
    found = asdict(analysis)
    for layer in found["layers"]:
        for bits, psnr in layer.pop("self_psnr").items():
            layer[f"psnr_{bits}"] = psnr
    for setting in found["settings"]:
        setting["mark"] = "knee" if setting["knee"] else ""
    asked = opt["network_g"]
    found["name"] = f"Analysis of {opt['name']}"
    found["network"] = asked["network"]["type"]
    figures: dict[str, Any] = plain(found)
    return figures


def analysis_tables(figures: Mapping[str, Any]) -> dict[str, Table]:
    """What the terminal and the page show, by a short name."""
    return {
        "layers": _table(figures, "Layers, each alone", "layers", LAYER_COLUMNS),
        "settings": _table(figures, "Bits and quality", "settings", SETTING_COLUMNS),
        "ways": _table(figures, "Ways to a quality", "ways", WAY_COLUMNS),
    }


def _table(
    figures: Mapping[str, Any], title: str, section: str, columns: Mapping[str, tuple[str, Writer]]
) -> Table:
    return Table(title, list(columns), rows_of(figures, section, columns))


def analysis_text(figures: Mapping[str, Any]) -> str:
    """The analysis for the terminal."""
    parts = [f"{figures['name']} ({figures['network']}): estimates, nothing is trained"]
    parts.append(figures["coverage"])
    for table in analysis_tables(figures).values():
        parts.append(f"{table.name}\n{table.text()}")
    parts.append("\n".join(figures["advice"]))
    return "\n\n".join(parts)


def write_analysis(figures: dict[str, Any], out: Path) -> Path:
    """Write an analysis as HTML, JSON and Markdown, with its plots.

    Args:
        figures: What `analysis_figures` returned.
        out: The folder.

    Returns:
        The page.
    """
    plots = {"settings": out / "settings.png", "errors": out / "errors.png"}
    save_plot(partial(settings_plot, figures["settings"], CURVES), plots["settings"])
    shares = {layer["name"]: layer["error_share"] for layer in figures["layers"]}
    save_plot(partial(error_plot, shares), plots["errors"])
    tables = analysis_tables(figures)
    write_json(out / "analysis.json", figures)
    write_tables(figures["name"], tables, out / "analysis.md")
    page = out / "analysis.html"
    write_tables_page(figures, tables, plots, page, "analysis.html")
    return page
