"""What is logged and kept of a validation set beside BasicSR's own log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from adabm_basicsr.errors import counted
from adabm_basicsr.models.tensorboard import log_image_bits
from adabm_basicsr.report.figures import own_variant
from adabm_basicsr.report.formats import format_figure
from adabm_basicsr.runs.observations import Observations
from adabm_basicsr.runs.pictures import LOW, PictureStore, to_pixels
from adabm_basicsr.runs.record import RunRecord, write_json
from adabm_basicsr.terminal import say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.json"
# How costs are logged that aren't numbers with four decimals.
FORMATS = {"bitops": "{:.4e}", "weight_bytes": "{}"}


def log_costs(
    name: str,
    costs: Mapping[str, float],
    observed: Observations,
    writer: SummaryWriter | None,
    iteration: int,
) -> None:
    """Log what a validation set cost, as BasicSR logs its metrics.

    Args:
        name: Name of the set.
        costs: Means over its images: FAB, BitOPs, ...
        observed: What was seen of the images.
        writer: BasicSR's, if it has one.
        iteration: Where training is.
    """
    lines = [f"Validation {name}"]
    for metric, value in costs.items():
        shown = FORMATS.get(metric, "{:.4f}").format(value)
        lines.append(f"\t # {metric}: {shown}")
    get_root_logger().info("\n".join(lines) + "\n")
    if not writer:
        return
    for metric, value in costs.items():
        writer.add_scalar(f"metrics/{name}/{metric}", value, iteration)
    bits = [row["bits"] for row in observed.images]
    log_image_bits(writer, name, bits, observed.bit_map(), iteration)


@master_only
def note_set(
    name: str,
    metrics: Mapping[str, float],
    observed: Observations,
    unit: str,
    seconds: float,
    record: RunRecord,
    by_frame: Mapping[str, list[float]],
) -> None:
    """Keep what a validation set came to, for the report, and say so in a line.

    Args:
        name: Name of the set.
        metrics: BasicSR's and ours, means over the images.
        observed: What was seen of the images.
        unit: What they are, in the plural.
        seconds: How long it took.
        record: Where it is noted; ``metrics.json`` beside it holds the latest of every set.
        by_frame: Of clips, metrics and bits of the first, second, ... frames, means over the clips;
            empty for images.
    """
    facts: dict[str, Any] = {"metrics": dict(metrics)}
    facts.update(observed.facts())
    if by_frame:
        facts["by_frame"] = dict(by_frame)
    facts["seconds"] = seconds
    record.note(sets={**record.facts["sets"], name: facts})
    _keep_largest(name, observed, record)
    _write_metrics(record.folder / METRICS_FILE, name, metrics)
    figures = [f"{metric} {format_figure(metric, value)}" for metric, value in metrics.items()]
    count = counted(len(observed.images), unit)
    say(f"Validation {name}: {count}, {seconds:.1f} s, {', '.join(figures)}")


def _keep_largest(name: str, observed: Observations, record: RunRecord) -> None:
    """Keep the picture that the report lays the bits of its tiles over."""
    if observed.largest is None:
        return
    store = PictureStore(record.folder)
    image, low, output = observed.largest
    store.keep(name, LOW, image, to_pixels(low))
    store.keep(name, own_variant(record.facts), image, to_pixels(output))


def _write_metrics(path: Path, name: str, metrics: Mapping[str, float]) -> None:
    """Keep the latest figures of every validation set in a file beside the log."""
    kept = {}
    if path.is_file():
        kept = json.loads(path.read_text())
    kept[name] = dict(metrics)
    write_json(path, kept)
