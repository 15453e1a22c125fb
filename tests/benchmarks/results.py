"""Results of the accuracy benchmark, as rows of tables: ours, and published ones beside them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from image_sets import NAMES
from published import PUBLISHED, Published

from adabm_basicsr.files import atomic_path

# What is quantized, and the options that say so. Transformers are published with the second.
# Products of attention aren't quantized by default; only transformers have any.
SCOPES = {
    "full": {"fully_quantized": True, "attention_products": True},
    "body": {"fully_quantized": False, "attention_products": True},
}
# Variants of ours that stand beside published results.
COMPARED = ("paper", "fast", "best", "thorough")


@dataclass(frozen=True)
class Row:
    """What quantizing a network in one way costs: means over seeds.

    Args:
        network: Architecture.
        scale: Its factor.
        scope: A key of `SCOPES`.
        bits: Bits of weights and activations, such as "W4A4".
        variant: How it was quantized.
        seeds: Number of seeds.
        date: The day of the last run.
        cpu: What it ran on; None where that wasn't written down.
        sets: By test set, as far as they are known: `loss` of PSNR and its standard deviation
            `loss_spread` in dB, `ssim`, `self_psnr` in dB and `fab`.
        calibration_fab: FAB of the calibration images.
        bytes: Size of the packed network.
        units: Cost of quantizing in forward units.
    """

    network: str
    scale: int
    scope: str
    bits: str
    variant: str
    seeds: int
    date: str
    cpu: str | None = None
    sets: dict[str, dict[str, float]] = field(default_factory=dict)
    calibration_fab: float | None = None
    bytes: float | None = None
    units: float | None = None


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the rows, which have the same keys."""
    return {key: mean(row[key] for row in rows) for key in rows[0]}


def summarise(runs: Iterable[dict]) -> list[Row]:
    """A row for each network, scale, scope, bits and variant: means over the seeds."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        setting = (run["network"], run["scale"], run["scope"], run["bits"], run["variant"])
        groups.setdefault(setting, []).append(run)

    rows = []
    for setting, seeds in groups.items():
        last = max(seeds, key=lambda run: run["date"])
        sets = {}
        for name in NAMES:
            figures = [run["sets"][name] for run in seeds if name in run["sets"]]
            if figures:
                sets[name] = _summarise_set(figures)
        rows.append(
            Row(
                *setting,
                seeds=len(seeds),
                date=last["date"],
                cpu=last["cpu"],
                sets=sets,
                calibration_fab=_mean_of(seeds, "calibration_fab"),
                bytes=_mean_of(seeds, "bytes"),
                units=_mean_of(seeds, "units"),
            )
        )
    return rows


def _summarise_set(figures: list[dict[str, float]]) -> dict[str, float]:
    """Figures of one set; ``figures`` has those of each seed."""
    losses = [found["full_precision_psnr"] - found["psnr"] for found in figures]
    average = means(figures)
    summary = {key: average[key] for key in ("ssim", "self_psnr", "fab")}
    summary["loss"] = mean(losses)
    if len(losses) > 1:
        summary["loss_spread"] = stdev(losses)
    return summary


def _mean_of(runs: list[dict], key: str) -> float | None:
    """Mean over the runs that know it; None where none does."""
    known = [run[key] for run in runs if run.get(key) is not None]
    return mean(known) if known else None


def choose(rows: Iterable[Row]) -> list[Row]:
    """Of the rows of one setting that with most seeds, of equally many the newest."""
    chosen: dict[tuple, Row] = {}
    for row in rows:
        setting = (row.network, row.scale, row.scope, row.bits, row.variant)
        known = chosen.get(setting)
        if known is None or (row.seeds, row.date) >= (known.seeds, known.date):
            chosen[setting] = row
    return list(chosen.values())


def table_of_results(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Cells of a table of our results; what isn't known is empty.

    Columns of SSIM, self-PSNR and FAB have a figure for each set, in the order of the columns of
    losses. FAB begins with that of the calibration images.
    """
    names = [name for name in NAMES if any(name in row.sets for row in rows)]
    table = []
    for row in rows:
        cells = {
            "network": f"{row.network} x{row.scale}",
            "scope": row.scope,
            "variant": row.variant,
            "bits": row.bits,
        }
        for name in names:
            cells[f"{name} loss"] = _loss(row.sets.get(name, {}))
        cells["SSIM"] = _figures(row, names, "ssim", ".4f")
        cells["self-PSNR (dB)"] = _figures(row, names, "self_psnr", ".1f")
        cells["FAB"] = _figures(row, names, "fab", ".2f")
        if row.calibration_fab is not None:
            cells["FAB"] = f"{row.calibration_fab:.2f} / {cells['FAB']}"
        cells["size"] = ""
        if row.bytes is not None:
            cells["size"] = f"{row.bytes / 1e6:.3f} MB"
        cells["forward units"] = ""
        if row.units is not None:
            cells["forward units"] = f"{row.units:.0f}"
        cells["seeds"] = str(row.seeds)
        cells["measured"] = row.date
        table.append(cells)
    return _without_empty_columns(table)


def _loss(figures: dict[str, float]) -> str:
    """Loss in dB with its spread; empty where it isn't known."""
    if "loss" not in figures:
        return ""
    # Of a network that is lost a decimal says enough.
    digits = 3 if figures["loss"] < 10 else 1
    text = f"{figures['loss']:.{digits}f}"
    if "loss_spread" in figures:
        text += f" ± {figures['loss_spread']:.{digits}f}"
    return f"{text} dB"


def _figures(row: Row, names: Sequence[str], key: str, form: str) -> str:
    """A figure of each set; empty where none is known."""
    cells = []
    for name in names:
        figures = row.sets.get(name, {})
        cells.append(format(figures[key], form) if key in figures else "-")
    if set(cells) == {"-"}:
        return ""
    return " / ".join(cells)


def table_of_comparison(
    rows: Sequence[Row], published: Sequence[Published] = PUBLISHED
) -> list[dict[str, str]]:
    """Cells of a table of published losses, and ours beside those of the same network and bits."""
    groups: dict[tuple, list[Published]] = {}
    for entry in published:
        groups.setdefault((entry.network, entry.scale, entry.bits), []).append(entry)

    table = []
    for group, entries in groups.items():
        table += [_cells_of_published(entry) for entry in entries]
        scopes = {entry.scope for entry in entries}
        for row in rows:
            has_scope = row.scope in scopes or None in scopes
            is_same = (row.network, row.scale, row.bits) == group
            if is_same and has_scope and row.variant in COMPARED:
                table.append(_cells_beside_published(row))
    return _without_empty_columns(table)


def _cells_of_published(entry: Published) -> dict[str, str]:
    cells = {
        "network": f"{entry.network} x{entry.scale}",
        "bits": entry.bits,
        "source": entry.source,
        "scope": entry.scope or "not stated",
        "trained": "yes" if entry.trained else "no",
    }
    for name in NAMES:
        cells[f"{name} loss"] = ""
        if name in entry.losses:
            cells[f"{name} loss"] = f"{entry.losses[name]:.2f} dB"
    cells["seeds"] = ""
    return cells


def _cells_beside_published(row: Row) -> dict[str, str]:
    cells = {
        "network": f"{row.network} x{row.scale}",
        "bits": row.bits,
        "source": f"ours, `{row.variant}`",
        "scope": row.scope,
        "trained": "no",
    }
    for name in NAMES:
        cells[f"{name} loss"] = _loss(row.sets.get(name, {}))
    cells["seeds"] = str(row.seeds)
    return cells


def _without_empty_columns(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """The table without columns in which every cell is empty."""
    filled = {key for cells in table for key, text in cells.items() if text}
    kept = []
    for cells in table:
        kept.append({key: text for key, text in cells.items() if key in filled})
    return kept


def published_beside(rows: Sequence[Row]) -> list[Published]:
    """What was published for the networks and bits of our rows."""
    ours = {(row.network, row.scale, row.bits) for row in rows}
    return [entry for entry in PUBLISHED if (entry.network, entry.scale, entry.bits) in ours]


def markdown(table: Sequence[dict[str, str]]) -> str:
    """A table of cells in Markdown."""
    lines = [list(table[0]), ["---"] * len(table[0])]
    lines += [list(cells.values()) for cells in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put_table(page: str, name: str, table: Sequence[dict[str, str]]) -> str:
    """A page of the docs with a table where two comments that have its name stand."""
    begin = f"<!-- {name}: begin -->"
    end = f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{markdown(table)}\n\n{end}{after}"


def regenerate(
    description: str | None,
    results_path: Path,
    page_path: Path,
    render_page: Callable[[str, dict], str],
) -> None:
    """Take the files of the command line into kept results, and write these and their page.

    Args:
        description: Of the script, for its help.
        results_path: The JSON file of the results that are kept, `runs` by name among them.
        page_path: The page of the docs that shows them.
        render_page: Makes the new page of the old one and the results.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="results of the benchmark")
    args = parser.parse_args()
    results = json.loads(results_path.read_text(encoding="utf-8"))
    for path in args.files:
        results["runs"].update(json.loads(path.read_text(encoding="utf-8")))
    page = render_page(page_path.read_text(encoding="utf-8"), results)
    with atomic_path(results_path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with atomic_path(page_path) as temporary:
        temporary.write_text(page, encoding="utf-8")
