"""Puts together the figures of a report from what runs recorded of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.runs.record import FILE, read_record
from adabm_basicsr.terminal import say

FULL = "full_precision"
STATIC = "static"
ADAPTIVE = "adaptive"
VARIANTS = (FULL, STATIC, ADAPTIVE)

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
OF_NETWORK = ("reached", "coverage", "kept", "thresholds", "calibration")
OF_SET = ("images", "bit_counts", "bit_map", "seconds")
OF_POINT = ("name", "network", "recipe", "scale", "asked", "seed", "seconds")


def own_variant(record: Mapping) -> str:
    """Which of `VARIANTS` the network of a run is."""
    if record["recipe"] is None:
        return FULL
    if record["recipe"] == STATIC:
        return STATIC
    return ADAPTIVE


def training_record(record: Mapping) -> dict[str, Any] | None:
    """The record of the run that made a network.

    Args:
        record: Of a training run, which is its own, or of a test run.

    Returns:
        None where the checkpoint was made elsewhere, or by an earlier version.
    """
    if record["kind"] == "train":
        return dict(record)
    checkpoint = record["options"]["path"].get("pretrain_network_g")
    if not checkpoint:
        return None
    # experiments/NAME of experiments/NAME/models/CHECKPOINT.pth
    folder = (Path(record["directory"]) / checkpoint).parent.parent
    try:
        return read_record(folder)
    except AdaBMError:
        return None


def gather(folder: Path) -> dict[str, Any]:
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
    seconds = {record["kind"]: record["seconds"]}
    if training:
        seconds["train"] = training["seconds"]
    sets = {}
    for name, found in record["sets"].items():
        facts: dict[str, Any] = {"versions": {own_variant(record): found["metrics"]}}
        for key in OF_SET:
            facts[key] = found[key]
        facts["by_frame"] = {}
        if "by_frame" in found:
            facts["by_frame"][own_variant(record)] = found["by_frame"]
        facts["frames"] = []
        sets[name] = facts

    figures = {key: record[key] for key in OF_RUN}
    for key in OF_NETWORK:
        figures[key] = training.get(key)
    figures["asked"] = record["asked"]
    figures["size"] = training.get("size") or record["size"]
    figures["seconds"] = seconds
    figures["phases"] = training.get("phases", [])
    figures["layers"] = worst_first(training.get("layers", []))
    figures["sets"] = sets
    figures["crops"] = []
    figures["runs"] = run_points(_runs_beside(folder))
    return figures


def _runs_beside(folder: Path) -> list[Path]:
    """Folders of the runs that the trade-off is over."""
    found = []
    for path in sorted(folder.resolve().parent.glob(f"*/{FILE}")):
        # A damaged record of another run is no reason to stop.
        try:
            read_record(path.parent)
        except AdaBMError as error:
            say(f"Report: without a run beside this one: {error}")
        else:
            found.append(path.parent)
    return found


def worst_first(layers: list[dict]) -> list[dict]:
    """Layers by signal to quantization noise.

    Those that aren't quantized, or didn't run, come last.
    """

    def noise_ratio(layer: Mapping) -> float:
        if layer["sqnr_db"] is None:
            return float("inf")
        return layer["sqnr_db"]

    return sorted(layers, key=noise_ratio)


def run_points(folders: list[Path]) -> list[dict[str, Any]]:
    """What runs reached: a point for each set that they validated.

    A point holds facts of the run, the name of the ``set`` and its ``metrics``.
    """
    points = []
    for folder in folders:
        record = read_record(folder)
        for name, found in record["sets"].items():
            point = {key: record[key] for key in OF_POINT}
            point["set"] = name
            point["metrics"] = found["metrics"]
            points.append(point)
    return points
