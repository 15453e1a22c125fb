"""Puts together the figures of a report from what runs noted of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.runs.record import FILE, read_record
from adabm_basicsr.terminal import say

FULL, STATIC, ADAPTIVE = "full_precision", "static", "adaptive"
VERSIONS = (FULL, STATIC, ADAPTIVE)
OF_RUN = (
    "name",
    "kind",
    "command",
    "directory",
    "started",
    "versions",
    "device",
    "seed",
    "scale",
    "network",
    "recipe",
)
OF_NETWORK = ("reached", "coverage", "thresholds", "calibration")


def own_version(record: Mapping) -> str:
    """Which of `VERSIONS` the network of a run is."""
    if record["recipe"] is None:
        return FULL
    return STATIC if record["recipe"] == STATIC else ADAPTIVE


def training_record(record: Mapping) -> dict | None:
    """Of the run that made the checkpoint that a test run tested; a training run is its own."""
    if record["kind"] == "train":
        return dict(record)
    checkpoint = record["options"]["path"].get("pretrain_network_g")
    folder = (
        Path(record["directory"]) / (checkpoint or "")
    ).parent.parent  # experiments/NAME of .../models/X.pth
    try:
        return read_record(folder) if checkpoint else None
    except AdaBMError:
        return None  # made elsewhere, or by an earlier version


def gather(folder: Path) -> dict:
    """All figures that the records of a run, and of those beside it, hold.

    Args:
        folder: The run's, ``experiments/NAME`` or ``results/NAME``.

    Returns:
        What ``report.json`` holds, but for what is measured on pictures.

    Raises:
        AdaBMError: There is no record.
    """
    record = read_record(folder)
    training = training_record(record) or {}
    figures = {key: record[key] for key in OF_RUN}
    figures |= {key: training.get(key) for key in OF_NETWORK}
    figures |= {"asked": record["asked"], "size": training.get("size") or record["size"]}
    figures["seconds"] = {record["kind"]: record["seconds"]}
    if training and record["kind"] != "train":
        figures["seconds"]["train"] = training["seconds"]
    figures["phases"] = training.get("phases", [])
    figures["layers"] = worst_first(training.get("layers", []))
    figures["sets"] = {
        name: _set_figures(found, own_version(record)) for name, found in record["sets"].items()
    }
    figures["crops"] = []
    figures["runs"] = run_points(_runs_beside(folder))
    return figures


def _runs_beside(folder: Path) -> list[Path]:
    """Folders of the runs that the trade-off is over: a damaged record of another run is no reason to stop."""
    found = []
    for path in sorted(folder.resolve().parent.glob(f"*/{FILE}")):
        try:
            read_record(path.parent)
            found.append(path.parent)
        except AdaBMError as error:
            say(f"Report: without a run beside this one: {error}")
    return found


def worst_first(layers: list[dict]) -> list[dict]:
    """Layers by signal to quantization noise; those that aren't quantized, or didn't run, last."""
    return sorted(
        layers, key=lambda layer: float("inf") if layer["sqnr_db"] is None else layer["sqnr_db"]
    )


def _set_figures(found: Mapping, version: str) -> dict:
    kept = ("images", "bit_counts", "bit_map", "seconds")
    return {"versions": {version: found["metrics"]}, **{key: found[key] for key in kept}}


def run_points(folders: list[Path]) -> list[dict]:
    """What runs reached: a point of PSNR, or what else is known, and BitOPs for each set that they validated."""
    points = []
    for folder in folders:
        record = read_record(folder)
        for name, found in record["sets"].items():
            facts = {
                key: record[key]
                for key in ("name", "network", "recipe", "scale", "asked", "seed", "seconds")
            }
            points.append({**facts, "set": name, "metrics": found["metrics"]})
    return points
