"""Runs the variants of a network that a report compares, on the images of its run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from torch import Tensor

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.deployment.load import load_network
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.metrics.choice import SELF_PSNR, split_metrics
from adabm_basicsr.quantization.calibration.calibrate import calibrate
from adabm_basicsr.quantization.checkpoint import is_quantized, load_checkpoint, read_checkpoint
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import tracked
from adabm_basicsr.report.clip_variants import make_clip_pictures
from adabm_basicsr.report.data import (
    ClipSet,
    PictureSet,
    calibration_dataset,
    directory_of,
    picture_sets,
)
from adabm_basicsr.report.figures import FULL, STATIC, own_variant, training_record
from adabm_basicsr.report.formats import say_figures, title
from adabm_basicsr.runs.facts import describe_size
from adabm_basicsr.runs.observations import Observations
from adabm_basicsr.runs.pictures import LOW, TRUTH, PictureStore, to_pixels
from adabm_basicsr.terminal import say

CHECKPOINT = Path("models") / "net_g_latest.pth"


class Variants:
    """The variants of a run's network; make it with the run's folder at work.

    Args:
        record: The facts of the run.
        checkpoint: Of its quantized network.
        custom_imports: Modules that register an in-house architecture; importing them runs their
            code.

    Raises:
        AdaBMError: The checkpoint is missing or can't be read.
    """

    def __init__(self, record: Mapping, checkpoint: Path, custom_imports: Sequence[str]) -> None:
        self.own = own_variant(record)
        self.val = record["options"].get("val")
        self.custom_imports = list(custom_imports)
        self.training = training_record(record)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        net = load_network(checkpoint, custom_imports)
        assert isinstance(net, QuantizedNetwork), "training and tests load checkpoints alone"
        self.net = net.to(self.device)
        self.digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        self._static: QuantizedNetwork | None = None

    def names(self) -> list[str]:
        """The variants that there are; a line says why the static one is left out."""
        if self.own == STATIC:
            return [FULL, STATIC]
        reason = self._why_no_static()
        if reason:
            say(f"Report: no static quantization to compare with: {reason}")
            return [FULL, self.own]
        return [FULL, STATIC, self.own]

    def _why_no_static(self) -> str | None:
        if self.training is None:
            return "the checkpoint doesn't lie in the folder of a training run of this version"
        weights = self.training["options"]["path"].get("pretrain_network_g")
        if not weights:
            return None
        if not Path(weights).is_file():
            return f"the full-precision checkpoint {weights} is gone"
        if is_quantized(read_checkpoint(weights)):
            return f"{weights} is quantized already"
        return None

    @contextmanager
    def running(self, variant: str) -> Iterator[QuantizedNetwork]:
        """The network that computes a variant, within this context."""
        if variant == FULL:
            with self.net.full_precision():
                yield self.net
        elif variant == self.own:
            yield self.net
        else:
            if self._static is None:
                assert self.training is not None, "names() leaves static out"
                self._static = self._quantize_static(self.training)
            yield self._static

    def costs(self, variant: str, observed: Observations) -> dict[str, float]:
        """Means over the images of a set: bits, BitOPs, size and, where asked for, self-PSNR."""
        costs = observed.means()
        if variant == FULL:
            costs["bitops"] = mean(row["float_bitops"] for row in observed.images)
            costs["weight_bytes"] = describe_size(self.net)["float_bytes"]
        return costs

    def _quantize_static(self, training: Mapping) -> QuantizedNetwork:
        """The same network at fixed bits, calibrated on the same images."""
        options = deepcopy(training["options"])
        asked = options["network_g"]
        asked.pop("type", None)
        asked.pop("custom_imports", None)
        asked |= {"recipe": STATIC, "ingredients": {}, "target": {}, "full_precision_images": 0}
        net = AdaBMNetwork(custom_imports=self.custom_imports, **asked)
        weights = options["path"].get("pretrain_network_g")
        if weights:
            load_checkpoint(net, weights)
        size = options["train"].get("calibration_batch_size", 16)
        batches = calibration_dataset(training).calibration_batches(size)
        batches = [batch.to(self.device) for batch in batches]
        watched = tracked(batches, "Calibrating static quantization")
        return calibrate(net.to(self.device), watched)


def make_pictures(folder: Path, record: Mapping, custom_imports: Sequence[str]) -> None:
    """Run every variant on every set of a run, and keep pictures and metrics.

    What was made before, from the same checkpoint, images and options, stays.

    Args:
        folder: The run's, where pictures are kept.
        record: The facts of the run.
        custom_imports: Modules that register an in-house architecture; importing them runs their
            code.

    Raises:
        AdaBMError: The checkpoint, images or an architecture are missing.
    """
    store = PictureStore(folder.resolve())
    checkpoint = folder.resolve() / CHECKPOINT
    if record["kind"] == "train" and not checkpoint.is_file():
        raise AdaBMError(
            f"{folder} holds no {CHECKPOINT}: finish the run (train --auto_resume) first"
        )
    with directory_of(record):
        if record["kind"] == "test":
            checkpoint = Path(record["options"]["path"]["pretrain_network_g"]).resolve()
        variants = Variants(record, checkpoint, custom_imports)
        names = variants.names()
        for pictures in picture_sets(record):
            metrics = _metrics(record, pictures.has_truth)
            key_of = partial(_key, variants, pictures, metrics)
            if isinstance(pictures, ClipSet):
                make_clip_pictures(store, variants, names, pictures, metrics, key_of)
                continue
            _keep_inputs(store, pictures)
            for variant in names:
                key = key_of(variant)
                if store.metrics(pictures.name, variant, key) is None:
                    figures, facts = _run(store, variants, variant, pictures, metrics)
                    store.keep_metrics(pictures.name, variant, key, figures, facts)


def _key(variants: Variants, pictures: PictureSet | ClipSet, metrics: Mapping, variant: str) -> str:
    """What differs if pictures of a variant, or their metrics, have to be made again."""
    made_from = f"{variants.digest} {variant} {pictures.key} {metrics}"
    return hashlib.sha256(made_from.encode()).hexdigest()


def _keep_inputs(store: PictureStore, pictures: PictureSet) -> None:
    """Keep LR images and ground truth of a set, if they aren't kept yet."""
    if store.metrics(pictures.name, LOW, pictures.key) is not None:
        return
    for picture in pictures:
        store.keep(pictures.name, LOW, picture.name, to_pixels(picture.low))
        if picture.truth is not None:
            store.keep(pictures.name, TRUTH, picture.name, to_pixels(picture.truth))
    store.keep_metrics(pictures.name, LOW, pictures.key, {})


def _metrics(record: Mapping, has_truth: bool) -> dict[str, Mapping]:
    """Metrics by name: those that the run asked for, or else PSNR and SSIM as the field has them.

    Self-PSNR is always among them.
    """
    asked = (record["options"].get("val") or {}).get("metrics")
    if not asked:
        asked = {}
        for name in ("psnr", "ssim"):
            asked[name] = {
                "type": f"calculate_{name}",
                "crop_border": record["scale"],
                "test_y_channel": True,
            }
    metrics, self_psnr = split_metrics(asked, has_truth)
    if not self_psnr:
        self_psnr = {"self_psnr": {"type": SELF_PSNR}}
    return metrics | self_psnr


@torch.no_grad()
def _run(
    store: PictureStore,
    variants: Variants,
    variant: str,
    pictures: PictureSet,
    metrics: Mapping[str, Mapping],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Make and keep the pictures of a set by one variant; returns metrics and further facts."""
    label = f"{pictures.name}, {title(variant)}"
    values: dict[str, list[float]] = {}
    with (
        variants.running(variant) as net,
        Observations(net, label, len(pictures), net, variants.val) as observed,
    ):
        for picture in pictures:
            image = picture.low.to(variants.device)
            output = observed.upscale(image)
            observed.note(picture.name, image, output)
            store.keep(pictures.name, variant, picture.name, to_pixels(output))
            for name, options in metrics.items():
                other: Tensor | np.ndarray | None = picture.truth
                if options["type"] == SELF_PSNR:
                    if variant == FULL:
                        continue
                    other = store.read(pictures.name, FULL, picture.name)
                values.setdefault(name, []).append(judge(output, other, options))
    figures = {name: mean(of_images) for name, of_images in values.items()}
    figures |= variants.costs(variant, observed)
    say_figures(label, figures)
    return figures, observed.facts()


def judge(output: Tensor, other: Tensor | np.ndarray | None, options: Mapping) -> float:
    """A metric of BasicSR's for an output.

    Args:
        output: ``(1, C, H, W)`` in 0..1.
        other: What it is compared with: a tensor of that kind, or ``(H, W, 3)`` uint8 RGB; None
            for metrics that judge an image alone.
        options: Of the metric, ``type`` among them.
    """
    images = {"img": _as_basicsr(to_pixels(output))}
    if isinstance(other, Tensor):
        images["img2"] = _as_basicsr(to_pixels(other))
    elif other is not None:
        channels = output.shape[1]
        images["img2"] = _as_basicsr(other[..., :channels])
    return calculate_metric(images, options)


def _as_basicsr(pixels: np.ndarray) -> np.ndarray:
    """BGR, and grey without an axis for its channel, as BasicSR's metrics are given."""
    if pixels.shape[2] == 3:
        return pixels[..., ::-1]
    return pixels[..., 0]
