"""The tables of a report, made once from its figures and written as HTML, Markdown or text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from adabm_basicsr.report.figures import VERSIONS
from adabm_basicsr.report.formats import MISSING, format_figure, format_seconds, title

COSTS = ("fab", "bitops", "bitops_share", "weight_bytes", "size_share")
Where = tuple[str | int, ...]  # keys and indices that lead to a figure


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
        return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in self.path)


@dataclass
class Table:
    """Rows of cells under headings."""

    name: str
    headers: list[str]
    rows: list[list[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, to be set flush right."""
        columns = ([row[i].value for row in self.rows] for i in range(len(self.headers)))
        return [any(isinstance(value, (int, float)) for value in column) for column in columns]

    def text(self, style: str = "simple") -> str:
        """The table for a terminal, or ``github`` for Markdown."""
        align = ["right" if flush else "left" for flush in self.numeric]
        rows = [
            [cell.text.replace("|", "\\|") if style == "github" else cell.text for cell in row]
            for row in self.rows
        ]
        return tabulate(
            rows, headers=self.headers, tablefmt=style, disable_numparse=True, colalign=align
        )


def look_up(figures: object, path: Where) -> object:
    """The value at a path; None where the path ends early."""
    for part in path:
        if isinstance(figures, Sequence) and isinstance(part, int):
            figures = figures[part]
        else:
            figures = figures.get(part) if isinstance(figures, Mapping) else None
    return figures


def cell(figures: Mapping, path: Where, shown: str | Callable[[object], str] = str) -> Cell:
    """A cell of the figure at ``path``; ``shown`` is its name in `format_figure`, or what writes it."""
    value = look_up(figures, path)
    if value is None:
        return Cell(MISSING, None, path)
    return Cell(
        format_figure(shown, value) if isinstance(shown, str) else shown(value), value, path
    )


def heading(text: str) -> Cell:
    """A cell that names its row."""
    return Cell(text, text)


SUMMARY: dict[str, tuple[Where, str | Callable]] = {
    "network": (("network",), str),
    "scale": (("scale",), "x{}".format),
    "recipe": (("recipe",), str),
    "weight bits asked": (("asked", "w_bits"), str),
    "weight bits reached": (("reached", "w_bits"), "fab"),
    "activation bits asked": (("asked", "a_bits"), str),
    "activation bits reached (calibration images)": (("reached", "a_bits"), "fab"),
    "target asked": (
        ("asked", "target"),
        lambda target: ", ".join(f"{k} {v:g}" for k, v in target.items()) or MISSING,
    ),
    "quantized share of MACs": (("coverage", "macs"), lambda share: f"{100 * share:.1f} %"),
    "size": (("size", "bytes"), "weight_bytes"),
    "size in full precision": (("size", "float_bytes"), "weight_bytes"),
    "time of quantization": (("seconds", "train"), "seconds"),
    "time of the test": (("seconds", "test"), "seconds"),
    "device": (("device",), str),
    "seed": (("seed",), str),
    "started": (("started",), str),
    "versions": (
        ("versions",),
        lambda versions: ", ".join(f"{name} {v}" for name, v in versions.items()),
    ),
    "command": (("command",), str),
}


def summary_table(figures: Mapping) -> Table:
    """What was asked, what it came to, and how."""
    rows = [[heading(name), cell(figures, *where)] for name, where in SUMMARY.items()]
    rows = [row for row in rows if row[1].text != MISSING]
    return Table("Summary", ["", "this run"], rows)


def in_order(names: Iterable[str]) -> list[str]:
    """Each name of a metric once: what images are judged by, then what they cost."""
    return sorted(dict.fromkeys(names), key=lambda name: COSTS.index(name) if name in COSTS else -1)


def sets_table(figures: Mapping) -> Table:
    """Metrics before and after quantization, a row for each set and version."""
    found = {name: facts["versions"] for name, facts in figures["sets"].items()}
    metrics = in_order(
        m for versions in found.values() for metrics in versions.values() for m in metrics
    )
    rows = []
    for name, versions in found.items():
        for version in [version for version in VERSIONS if version in versions]:
            path = ("sets", name, "versions", version)
            cells = [cell(figures, (*path, metric), metric) for metric in metrics]
            rows.append([heading(name), heading(title(version)), *cells])
    return Table("Validation", ["set", "version", *map(title, metrics)], rows)


def phases_table(figures: Mapping) -> Table:
    """What the run did one after the other."""
    rows = [
        [
            cell(figures, ("phases", i, "name"), str),
            cell(figures, ("phases", i, "seconds"), format_seconds),
            *(
                cell(figures, ("phases", i, key), "{:.4g}".format)
                for key in ("loss_before", "loss_after")
            ),
        ]
        for i in range(len(figures["phases"]))
    ]
    return Table("Phases", ["phase", "time", "loss before", "loss after"], rows)


LAYER_COLUMNS: dict[str, tuple[str, Callable]] = {
    "layer": ("name", str),
    "role": ("role", str),
    "SQNR (dB)": ("sqnr_db", "{:.1f}".format),
    "w bits": ("w_bits", str),
    "a bits": ("a_bits", "{:.2f}".format),
    "MACs": ("macs_share", lambda share: f"{100 * share:.1f} %"),
    "lower": ("lower", "{:.4g}".format),
    "upper": ("upper", "{:.4g}".format),
    "lowest": ("lowest", "{:.4g}".format),
    "highest": ("highest", "{:.4g}".format),
}


def layers_table(figures: Mapping) -> Table:
    """A row for each quantized layer, worst first."""
    rows = [
        [cell(figures, ("layers", i, key), shown) for key, shown in LAYER_COLUMNS.values()]
        for i in range(len(figures["layers"]))
    ]
    return Table("Layers", list(LAYER_COLUMNS), rows)


def runs_table(figures: Mapping) -> Table:
    """A row for each run and set: what `run_points` found."""
    metrics = in_order(metric for point in figures["runs"] for metric in point["metrics"])
    rows = []
    for i in range(len(figures["runs"])):
        facts = [
            cell(figures, ("runs", i, key), str) for key in ("name", "set", "network", "recipe")
        ]
        bits = [cell(figures, ("runs", i, "asked", key), str) for key in ("w_bits", "a_bits")]
        cells = [cell(figures, ("runs", i, "metrics", metric), metric) for metric in metrics]
        rows.append([*facts, *bits, *cells, cell(figures, ("runs", i, "seconds"), "seconds")])
    headers = ["run", "set", "network", "recipe", "w bits", "a bits", *map(title, metrics), "time"]
    return Table("Runs", headers, rows)


def all_tables(figures: Mapping) -> dict[str, Table]:
    """Those that have rows, by a short name."""
    made = {
        "summary": summary_table,
        "sets": sets_table,
        "phases": phases_table,
        "layers": layers_table,
    }
    tables = {name: make(figures) for name, make in {**made, "runs": runs_table}.items()}
    return {name: table for name, table in tables.items() if table.rows}
