"""Frames of validation sets of clips, by whichever of BasicSR's video datasets gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from basicsr.data.video_test_dataset import (
    VideoRecurrentTestDataset,
    VideoTestDataset,
    VideoTestVimeo90KDataset,
)
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, tensor2img
from torch import Tensor

from adabm_basicsr.data.images import write_image
from adabm_basicsr.errors import OptionError
from adabm_basicsr.quantization.bit_mapping import frames_of
from adabm_basicsr.quantization.checks import CLIP_AXES
from adabm_basicsr.quantization.distributed import gather_objects
from adabm_basicsr.quantization.structure.clips import middle_frame


class Place(NamedTuple):
    """Which frames of a validation set an item gives the truth of.

    Attributes:
        clip: Name of their clip.
        first: Number of the first of them in the clip.
        name: Of the item, in records.
        stem: Of the file of its frame; None for whole clips, whose frames are numbered.
    """

    clip: str
    first: int
    name: str
    stem: str | None


def gives_clips(dataset: object) -> bool:
    """Whether items of a validation set are clips."""
    return isinstance(dataset, (VideoTestDataset, VideoTestVimeo90KDataset))


def unit_of(dataset: object) -> str:
    """What the items of a validation set are, in the plural; a window stands for its frame."""
    if isinstance(dataset, (VideoRecurrentTestDataset, VideoTestVimeo90KDataset)):
        return "clips"
    return "frames" if gives_clips(dataset) else "images"


def find_place(dataset: object, item: Mapping[str, Any]) -> Place:
    """Where an item of a validation set stands.

    Args:
        dataset: One of those that `gives_clips` knows.
        item: As a data loader gives it, in a batch of one.
    """
    (clip,) = item["folder"]
    if isinstance(dataset, VideoRecurrentTestDataset):
        return Place(clip, 0, clip, None)
    path = Path(item["lq_path"][0])
    if isinstance(dataset, VideoTestVimeo90KDataset):
        clip = f"{path.parts[-3]}_{path.parts[-2]}"
        return Place(clip, 0, clip, clip)
    number = int(item["idx"][0].partition("/")[0])
    return Place(clip, number, f"{clip}_{path.stem}", path.stem)


def judged_frames(output: Tensor, truth: Tensor) -> Tensor:
    """What a network made, as far as there is ground truth of it: frames ``(T, C, H, W)``.

    Args:
        output: A clip ``(1, T, C, H, W)`` or an image ``(1, C, H, W)``.
        truth: The same of the truth; an image is that of the middle frame.

    Raises:
        OptionError: There is truth of a whole clip for one frame.
    """
    if output.dim() == truth.dim():
        return frames_of(output)
    if output.dim() == CLIP_AXES:
        return middle_frame(output)
    raise OptionError(
        "datasets: type: VideoRecurrentTestDataset gives whole clips, but the network makes one "
        "frame of a window; take VideoTestDataset"
    )


def judged_figures(figures: Mapping[str, Sequence[float]], count: int) -> dict[str, list[float]]:
    """Figures by frame of what a network made, as far as `judged_frames` takes it.

    Args:
        figures: Of each frame that it made, by name.
        count: How many are judged: all of them, or the middle one.
    """
    judged = {}
    for name, values in figures.items():
        first = (len(values) - count) // 2
        judged[name] = list(values[first : first + count])
    return judged


class FrameMetrics:
    """Metrics of the frames of a validation set.

    Args:
        metrics: Options of each metric, by name.
    """

    def __init__(self, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        self.metrics = metrics
        # By clip and number of the frame.
        self._values: dict[tuple[str, int], dict[str, float]] = {}

    def note(
        self,
        place: Place,
        frames: Tensor,
        truth: Tensor | None,
        figures: Mapping[str, Sequence[float]],
    ) -> None:
        """Judge frames.

        Args:
            place: Which they are.
            frames: ``(T, C, H, W)`` in 0..1.
            truth: Ground truth, ``(1, T, C, sH, sW)`` or of one frame; None if there is none.
            figures: What else is known of each frame, by name.
        """
        for offset, frame in enumerate(frames.cpu().split(1)):
            values = {}
            if truth is not None:
                wanted = frames_of(truth)[offset].cpu()
                pair = {"img": tensor2img([frame]), "img2": tensor2img([wanted])}
                for name, options in self.metrics.items():
                    values[name] = float(calculate_metric(pair, dict(options)))
            for name, of_frames in figures.items():
                values[name] = of_frames[offset]
            self._values[place.clip, place.first + offset] = values

    def gather(self) -> None:
        """Add what other processes noted."""
        shares = gather_objects(self._values)
        self._values = {}
        for share in shares:
            self._values.update(share)

    def of_clips(self, metric: str) -> dict[str, float]:
        """Mean of a metric over the frames of each clip, as BasicSR takes it."""
        values: dict[str, list[float]] = {}
        for (clip, _), found in sorted(self._values.items()):
            values.setdefault(clip, []).append(found[metric])
        return {clip: mean(of_clip) for clip, of_clip in values.items()}

    def by_frame(self, metric: str) -> list[float]:
        """Mean of a metric over the first, second, ... frames of all clips that have so many."""
        values: dict[int, list[float]] = {}
        for (_, number), found in self._values.items():
            values.setdefault(number, []).append(found[metric])
        return [mean(values[number]) for number in sorted(values)]

    def all_by_frame(self) -> dict[str, list[float]]:
        """`by_frame` of all metrics and figures."""
        names: dict[str, None] = {}
        for found in self._values.values():
            names.update(dict.fromkeys(found))
        return {name: self.by_frame(name) for name in names}

    def log(self, name: str) -> None:
        """Log each metric by clip, and by frame where clips have several."""
        lines = [f"Validation {name}, by clip and by frame from first to last"]
        for metric in self.metrics:
            lines.append(f"\t # {metric}: {_listed_by_name(self.of_clips(metric))}")
            by_frame = self.by_frame(metric)
            if len(by_frame) > 1:
                lines.append(f"\t # {metric} by frame: {_listed(by_frame)}")
        get_root_logger().info("\n".join(lines) + "\n")


def _listed_by_name(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def _listed(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def save_frames(frames: Tensor, place: Place, folder: Path, suffix: str) -> None:
    """Write frames where BasicSR's video models do.

    Args:
        frames: ``(T, C, H, W)`` in 0..1.
        place: Which they are.
        folder: That of the set's pictures.
        suffix: At the end of each name.
    """
    for offset, frame in enumerate(frames):
        stem = place.stem or f"{offset:08d}"
        write_image(tensor2img([frame.cpu()]), folder / place.clip / f"{stem}_{suffix}.png")
