"""Runs the variants of a network on clips, and keeps the frames that quantization hurts most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adabm_basicsr.metrics.choice import split_metrics
from adabm_basicsr.quantization.bit_mapping import frames_of
from adabm_basicsr.report.data import Clip, ClipSet
from adabm_basicsr.report.figures import FULL
from adabm_basicsr.report.formats import say_figures, title
from adabm_basicsr.runs.frames import FrameMetrics, judged_figures
from adabm_basicsr.runs.observations import Observations
from adabm_basicsr.runs.pictures import LOW, TRUTH, PictureStore, to_pixels

if TYPE_CHECKING:
    from adabm_basicsr.report.variants import Variants

SHOWN = 6  # frames of a set
APART = 5  # frames of a clip that lie closer together look alike


@dataclass
class HurtFrame:
    """A frame that differs from full precision.

    Attributes:
        clip: Name of its clip.
        number: Its place there, from 0.
        self_psnr: In dB.
        pixels: What the quantized network made, ``(H, W, C)`` uint8.
    """

    clip: str
    number: int
    self_psnr: float
    pixels: np.ndarray

    @property
    def picture(self) -> str:
        """Name of its picture."""
        return picture_name(self.clip, self.number)


def picture_name(clip: str, number: int) -> str:
    """Name of the picture of a frame."""
    return f"{clip}_{number:08d}"


class WorstFrames:
    """The frames of a set that quantization hurts most.

    Attributes:
        found: At most `SHOWN`, the worst first, at least `APART` frames from one another.
    """

    def __init__(self) -> None:
        self.found: list[HurtFrame] = []

    def offer(self, frame: HurtFrame) -> None:
        """Take a frame if it is among the worst so far."""
        others = []
        for other in self.found:
            if other.clip != frame.clip or abs(other.number - frame.number) >= APART:
                others.append(other)
            elif other.self_psnr <= frame.self_psnr:
                return
        others.append(frame)
        others.sort(key=lambda one: one.self_psnr)
        self.found = others[:SHOWN]

    def facts(self) -> list[dict[str, Any]]:
        """Of each frame the name of its ``picture``, its ``clip``, ``number`` and ``self_psnr``."""
        facts = []
        for frame in self.found:
            facts.append(
                {
                    "picture": frame.picture,
                    "clip": frame.clip,
                    "number": frame.number,
                    "self_psnr": frame.self_psnr,
                }
            )
        return facts


def make_clip_pictures(
    store: PictureStore,
    variants: Variants,
    names: Sequence[str],
    clips: ClipSet,
    metrics: Mapping[str, Mapping],
    key_of: Callable[[str], str],
) -> None:
    """Run every variant on a set of clips; keep metrics, and the frames that are hurt most.

    What was made before stays.

    Args:
        store: Where they are kept.
        variants: Of the network.
        names: Those to run.
        clips: The set.
        metrics: Options of each metric, by name; self-PSNR is among them.
        key_of: Gives the key of what a variant is made from.
    """
    # The run's own comes first: it says which frames are kept.
    for variant in sorted(names, key=lambda variant: variant != variants.own):
        key = key_of(variant)
        if store.metrics(clips.name, variant, key) is None:
            # Other frames may have been hurt most before.
            store.forget(clips.name, variant)
            figures, facts = _run(store, variants, variant, clips, metrics)
            store.keep_metrics(clips.name, variant, key, figures, facts)
    _keep_inputs(store, clips, _kept(store, clips.name, variants.own))


def _kept(store: PictureStore, name: str, own: str) -> list[str]:
    """Names of the pictures that are kept of a set."""
    facts = store.facts(name, own) or {}
    return [frame["picture"] for frame in facts.get("frames", [])]


def _keep_inputs(store: PictureStore, clips: ClipSet, kept: Sequence[str]) -> None:
    """Keep LR frames and ground truth of the frames whose pictures have these names."""
    key = f"{clips.key} {kept}"
    if store.metrics(clips.name, LOW, key) is not None:
        return
    store.forget(clips.name, LOW)
    store.forget(clips.name, TRUTH)
    for clip in clips:
        _keep_frames(store, clips.name, LOW, clip, clip.judged(clip.low), kept)
        if clip.truth is not None:
            _keep_frames(store, clips.name, TRUTH, clip, frames_of(clip.truth), kept)
    store.keep_metrics(clips.name, LOW, key, {})


def _keep_frames(
    store: PictureStore, name: str, variant: str, clip: Clip, frames: Tensor, kept: Sequence[str]
) -> None:
    """Keep those of some frames ``(T, C, H, W)`` of a clip whose pictures have these names."""
    for offset, frame in enumerate(frames.split(1)):
        picture = picture_name(clip.place.clip, clip.place.first + offset)
        if picture in kept:
            store.keep(name, variant, picture, to_pixels(frame))


@torch.no_grad()
def _run(
    store: PictureStore,
    variants: Variants,
    variant: str,
    clips: ClipSet,
    metrics: Mapping[str, Mapping],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Run one variant on a set and keep its pictures; returns metrics and further facts."""
    judging, comparing = split_metrics(metrics, clips.has_truth)
    if variant == FULL:
        comparing = {}
    label = f"{clips.name}, {title(variant)}"
    judged = FrameMetrics(judging)
    worst = WorstFrames()
    kept = _kept(store, clips.name, variants.own)
    with (
        variants.running(variant) as net,
        Observations(net, label, len(clips), net, self_psnr=comparing) as observed,
    ):
        for clip in clips:
            low = clip.low.to(variants.device)
            output = observed.upscale(low)
            observed.note(clip.place.name, low, output)
            frames = clip.judged(output)
            figures = judged_figures(observed.of_frames, len(frames))
            judged.note(clip.place, frames, clip.truth, figures)
            if variant == variants.own:
                # Of several metrics of self-PSNR, the first says what is hurt most.
                self_psnr = figures[next(iter(comparing))]
                _offer(worst, clip, frames, self_psnr)
            else:
                _keep_frames(store, clips.name, variant, clip, frames, kept)
    if variant == variants.own:
        for frame in worst.found:
            store.keep(clips.name, variant, frame.picture, frame.pixels)
    facts = observed.facts()
    facts["by_frame"] = judged.all_by_frame()
    facts["frames"] = worst.facts()
    figures_of_set = {}
    for name in metrics:
        if name in facts["by_frame"]:
            figures_of_set[name] = mean(judged.of_clips(name).values())
    figures_of_set = variants.costs(variant, observed) | figures_of_set
    say_figures(label, figures_of_set)
    return figures_of_set, facts


def _offer(worst: WorstFrames, clip: Clip, frames: Tensor, self_psnr: Sequence[float]) -> None:
    for offset, (frame, error) in enumerate(zip(frames.split(1), self_psnr, strict=True)):
        number = clip.place.first + offset
        worst.offer(HurtFrame(clip.place.clip, number, error, to_pixels(frame)))
