"""The tables of a report, made once from its figures and written as HTML, Markdown or text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from adabm_basicsr.quantization.engines import KERNEL_BITS
from adabm_basicsr.report.figures import VARIANTS
from adabm_basicsr.report.formats import (
    MISSING,
    format_figure,
    format_percent,
    format_seconds,
    title,
)
from adabm_basicsr.terminal import printable

COSTS = ("fab", "bitops", "bitops_share", "weight_bytes", "size_share")
CLASS_NAMES = ("simple", "middle", "complex")
Where = tuple[str | int, ...]  # keys and indices that lead to a figure
Writer = str | Callable[[Any], str]  # a figure's name in `format_figure`, or what writes it


@dataclass
class Cell:
    """One figure as it is shown.

    Attributes:
        text: What is shown.
        value: The figure itself, which rows are sorted by.
        path: Where it stands in ``report.json``; empty for a heading.
    """

    text: str
    value: object
    path: Where = ()

    @property
    def pointer(self) -> str:
        """``path`` as a JSON pointer (RFC 6901)."""
        pointer = ""
        for part in self.path:
            escaped = str(part).replace("~", "~0").replace("/", "~1")
            pointer += f"/{escaped}"
        return pointer


@dataclass
class Table:
    """Rows of cells under headings."""

    name: str
    headers: list[str]
    rows: list[list[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, to be set flush right."""
        flush = []
        for column in range(len(self.headers)):
            values = [row[column].value for row in self.rows]
            flush.append(any(isinstance(value, int | float) for value in values))
        return flush

    def text(self, style: str = "simple") -> str:
        """The table for a terminal, or ``github`` for Markdown."""
        rows = []
        for row in self.rows:
            texts = [printable(cell.text) for cell in row]
            if style == "github":
                texts = [text.replace("|", "\\|") for text in texts]
            rows.append(texts)
        align = ["right" if flush else "left" for flush in self.numeric]
        return tabulate(
            rows,
            headers=self.headers,
            tablefmt=style,
            disable_numparse=True,
            colalign=align,
        )


def look_up(figures: object, path: Where) -> Any:
    """The value at a path; None where the path ends early."""
    for part in path:
        if isinstance(figures, Sequence) and isinstance(part, int):
            figures = figures[part]
        elif isinstance(figures, Mapping):
            figures = figures.get(part)
        else:
            return None
    return figures


def cell(figures: Mapping, path: Where, shown: Writer = str) -> Cell:
    """A cell of the figure at a path.

    Args:
        figures: Those of the report.
        path: Keys and indices that lead to the figure.
        shown: Its name in `format_figure`, or what writes it.
    """
    value = look_up(figures, path)
    if value is None:
        return Cell(MISSING, None, path)
    if isinstance(shown, str):
        return Cell(format_figure(shown, value), value, path)
    return Cell(shown(value), value, path)


def heading(text: str) -> Cell:
    """A cell that names its row."""
    return Cell(text, text)


def _target(target: Mapping[str, float]) -> str:
    asked = [f"{name} {value:g}" for name, value in target.items()]
    return ", ".join(asked) or MISSING


def _activation_bits(bits: int) -> str:
    if bits >= KERNEL_BITS:
        return str(bits)
    return f"{bits} (engines multiply integers of {KERNEL_BITS} bits: those are as fast)"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or MISSING


def _share(share: float) -> str:
    return format_percent(share) if share else MISSING


def _decibels(psnr: float) -> str:
    return f"{psnr:.2f} dB"


def _software(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


SUMMARY: dict[str, tuple[Where, Writer]] = {
    "network": (("network",), str),
    "scale": (("scale",), "x{}".format),
    "recipe": (("recipe",), str),
    "weight bits asked": (("asked", "w_bits"), str),
    "weight bits reached": (("reached", "w_bits"), "fab"),
    "activation bits asked": (("asked", "a_bits"), _activation_bits),
    "activation bits reached (calibration images)": (("reached", "a_bits"), "fab"),
    "target asked": (("asked", "target"), _target),
    "quantized share of MACs": (("coverage", "macs"), format_percent),
    "layers kept in float": (("kept", "layers"), _names),
    "images kept in float, the most complex ones": (("kept", "images_share"), _share),
    "their share of MACs": (("kept", "macs_share"), format_percent),
    "what they add to BitOPs (of full)": (("kept", "bitops_share"), format_percent),
    "what they add to the size": (("kept", "bytes"), "weight_bytes"),
    "self-PSNR without them (held-back images)": (("kept", "before"), _decibels),
    "self-PSNR with them (held-back images)": (("kept", "after"), _decibels),
    "size": (("size", "bytes"), "weight_bytes"),
    "size in full precision": (("size", "float_bytes"), "weight_bytes"),
    "time of quantization": (("seconds", "train"), "seconds"),
    "time of the test": (("seconds", "test"), "seconds"),
    "device": (("device",), str),
    "seed": (("seed",), str),
    "started": (("started",), str),
    "software": (("versions",), _software),
    "command": (("command",), str),
}


def summary_table(figures: Mapping) -> Table:
    """What was asked, what it came to, and how."""
    rows = []
    for name, (path, shown) in SUMMARY.items():
        figure = cell(figures, path, shown)
        if figure.text != MISSING:
            rows.append([heading(name), figure])
    return Table("Summary", ["", "this run"], rows)


def in_order(names: Iterable[str]) -> list[str]:
    """Each name of a metric once: what images are judged by, then what they cost."""
    unique = list(dict.fromkeys(names))
    judged = [name for name in unique if name not in COSTS]
    costs = [name for name in COSTS if name in unique]
    return judged + costs


def sets_table(figures: Mapping) -> Table:
    """Metrics before and after quantization, a row for each set and variant."""
    names: list[str] = []
    for facts in figures["sets"].values():
        for metrics_of_variant in facts["versions"].values():
            names += metrics_of_variant
    metrics = in_order(names)
    rows = []
    for name, facts in figures["sets"].items():
        for variant in VARIANTS:
            if variant not in facts["versions"]:
                continue
            row = [heading(name), heading(title(variant))]
            for metric in metrics:
                row.append(cell(figures, ("sets", name, "versions", variant, metric), metric))
            rows.append(row)
    return Table("Validation", ["set", "variant", *map(title, metrics)], rows)


PHASE_COLUMNS: dict[str, tuple[str, Writer]] = {
    "phase": ("name", str),
    "time": ("seconds", format_seconds),
    "loss before": ("loss_before", "{:.4g}".format),
    "loss after": ("loss_after", "{:.4g}".format),
}
LAYER_COLUMNS: dict[str, tuple[str, Writer]] = {
    "layer": ("name", str),
    "role": ("role", str),
    "SQNR (dB)": ("sqnr_db", "{:.1f}".format),
    "w bits": ("w_bits", str),
    "a bits": ("a_bits", "{:.2f}".format),
    "MACs": ("macs_share", format_percent),
    "lower": ("lower", "{:.4g}".format),
    "upper": ("upper", "{:.4g}".format),
    "lowest": ("lowest", "{:.4g}".format),
    "highest": ("highest", "{:.4g}".format),
    "clipped": ("clipped", lambda share: f"{100 * share:.2f} %"),
}


CLASS_COLUMNS: dict[str, tuple[str, Writer]] = {
    "bits": ("bits", "fab"),
}
RANGE_COLUMNS: dict[str, tuple[str, Writer]] = {
    "range factor": ("range_factor", "{:.2f}".format),
    "smallest": ("smallest_factor", "{:.2f}".format),
    "largest": ("largest_factor", "{:.2f}".format),
}


def phases_table(figures: Mapping) -> Table:
    """What the run did one after the other."""
    return Table("Phases", list(PHASE_COLUMNS), rows_of(figures, "phases", PHASE_COLUMNS))


def layers_table(figures: Mapping) -> Table:
    """A row for each quantized layer, worst first."""
    return Table("Layers", list(LAYER_COLUMNS), rows_of(figures, "layers", LAYER_COLUMNS))


def rows_of(
    figures: Mapping, section: str, columns: Mapping[str, tuple[str, Writer]]
) -> list[list[Cell]]:
    """A row of cells for each entry of a list in the figures."""
    rows = []
    for index in range(len(figures[section])):
        row = []
        for key, shown in columns.values():
            row.append(cell(figures, (section, index, key), shown))
        rows.append(row)
    return rows


def mapped_set(figures: Mapping) -> str | None:
    """The set whose largest image has the most tiles; None where no classes of tiles are known."""
    found = None
    most = 0
    for name in sorted(figures["sets"]):
        bit_map = figures["sets"][name]["bit_map"]
        # Earlier versions recorded bits alone.
        if not bit_map or "classes" not in bit_map:
            continue
        tiles = sum(len(row) for row in bit_map["classes"])
        if tiles >= most:
            found = name
            most = tiles
    return found


def classes_table(figures: Mapping) -> Table:
    """What each class of images means, and how many tiles of a large image have it."""
    name = mapped_set(figures)
    if name is None:
        return Table("Image classes", [], [])
    bit_map = figures["sets"][name]["bit_map"]
    columns = dict(CLASS_COLUMNS)
    if bit_map["class_facts"][0]["range_factor"] is not None:
        columns |= RANGE_COLUMNS
    rows = []
    for index, class_name in enumerate(CLASS_NAMES):
        tiles = sum(row.count(index) for row in bit_map["classes"])
        row = [heading(class_name), Cell(str(tiles), tiles)]
        for key, shown in columns.values():
            path = ("sets", name, "bit_map", "class_facts", index, key)
            row.append(cell(figures, path, shown))
        rows.append(row)
    return Table("Image classes", ["class", "tiles", *columns], rows)


def runs_table(figures: Mapping) -> Table:
    """A row for each run and set: what `run_points` found."""
    names: list[str] = []
    for point in figures["runs"]:
        names += point["metrics"]
    metrics = in_order(names)
    rows = []
    for index in range(len(figures["runs"])):
        row = []
        for key in ("name", "set", "network", "recipe"):
            row.append(cell(figures, ("runs", index, key)))
        for key in ("w_bits", "a_bits"):
            row.append(cell(figures, ("runs", index, "asked", key)))
        for metric in metrics:
            row.append(cell(figures, ("runs", index, "metrics", metric), metric))
        row.append(cell(figures, ("runs", index, "seconds"), "seconds"))
        rows.append(row)
    headers = ["run", "set", "network", "recipe", "w bits", "a bits", *map(title, metrics), "time"]
    return Table("Runs", headers, rows)


def all_tables(figures: Mapping) -> dict[str, Table]:
    """Those that have rows, by a short name."""
    tables = {
        "summary": summary_table(figures),
        "sets": sets_table(figures),
        "classes": classes_table(figures),
        "phases": phases_table(figures),
        "layers": layers_table(figures),
        "runs": runs_table(figures),
    }
    return {name: table for name, table in tables.items() if table.rows}
