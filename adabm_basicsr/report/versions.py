"""Runs the versions of a network that a report compares, full precision, static and adaptive, on a run's images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from torch import Tensor

from adabm_basicsr.deployment.load import load_network
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.metrics.choice import SELF_PSNR, split_metrics
from adabm_basicsr.quantization.calibration.calibrate import calibrate
from adabm_basicsr.quantization.checkpoint import is_quantized, load_checkpoint, read_checkpoint
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import tracked
from adabm_basicsr.report.data import PictureSet, calibration_dataset, directory_of, picture_sets
from adabm_basicsr.report.figures import FULL, STATIC, own_version, training_record
from adabm_basicsr.report.formats import format_figure, title
from adabm_basicsr.runs.facts import describe_size
from adabm_basicsr.runs.observations import Observations
from adabm_basicsr.runs.pictures import LOW, TRUTH, PictureStore, to_pixels
from adabm_basicsr.terminal import say


class Versions:
    """The versions of a run's network; call it with the run's folder at work.

    Args:
        record: The facts of the run.
        checkpoint: Of its quantized network.
        custom_imports: Modules that register an in-house architecture; importing them runs their code.

    Raises:
        AdaBMError: The checkpoint is missing or can't be read.
    """

    def __init__(self, record: Mapping, checkpoint: Path, custom_imports: Sequence[str]) -> None:
        self.own, self.val = own_version(record), record["options"].get("val")
        self.custom_imports = list(custom_imports)
        self.training = training_record(record)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = load_network(checkpoint, custom_imports).to(self.device)
        self.digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        self._static: QuantizedNetwork | None = None

    def names(self) -> list[str]:
        """The versions that there are; why the static one is left out is said."""
        if self.own == STATIC:
            return [FULL, STATIC]
        if why := self._no_static():
            say(f"Report: no static quantization to compare with: {why}")
            return [FULL, self.own]
        return [FULL, STATIC, self.own]

    def _no_static(self) -> str | None:
        if self.training is None:
            return "the checkpoint doesn't lie in the folder of a training run of this version"
        weights = self.training["options"]["path"].get("pretrain_network_g")
        if weights and not Path(weights).is_file():
            return f"the full-precision checkpoint {weights} is gone"
        if weights and is_quantized(read_checkpoint(weights)):
            return f"{weights} is quantized already"
        return None

    @contextmanager
    def running(self, version: str) -> Iterator[QuantizedNetwork]:
        """The network that computes a version, within this context."""
        net = self._static_network() if version == STATIC != self.own else self.net
        with net.full_precision() if version == FULL else nullcontext():
            yield net

    def _static_network(self) -> QuantizedNetwork:
        """The same network at fixed bits, calibrated on the same images; built once."""
        if self._static is None:
            from adabm_basicsr.archs.adabm_arch import AdaBMNetwork

            options = deepcopy(self.training["options"])
            asked = {
                key: value
                for key, value in options["network_g"].items()
                if key not in ("type", "custom_imports")
            }
            asked |= {"recipe": STATIC, "ingredients": {}, "target": {}}
            net = AdaBMNetwork(custom_imports=self.custom_imports, **asked)
            if weights := options["path"].get("pretrain_network_g"):
                load_checkpoint(net, weights)
            size = options["train"].get("calibration_batch_size", 16)
            batches = calibration_dataset(self.training).calibration_batches(size)
            batches = [batch.to(self.device) for batch in batches]
            self._static = calibrate(
                net.to(self.device), tracked(batches, "Calibrating static quantization")
            )
        return self._static


def make_pictures(folder: Path, record: Mapping, custom_imports: Sequence[str]) -> None:
    """Run every version on every set of a run, as far as that wasn't done before, and keep pictures and metrics.

    Args:
        folder: The run's, where pictures are kept.
        record: The facts of the run.
        custom_imports: Modules that register an in-house architecture; importing them runs their code.

    Raises:
        AdaBMError: The checkpoint, images or an architecture are missing.
    """
    store, checkpoint = (
        PictureStore(folder.resolve()),
        folder.resolve() / "models" / "net_g_latest.pth",
    )
    if record["kind"] == "train" and not checkpoint.is_file():
        raise AdaBMError(
            f"{folder} holds no models/{checkpoint.name}: finish the run (train --auto_resume) first"
        )
    with directory_of(record):
        if record["kind"] == "test":
            checkpoint = Path(record["options"]["path"]["pretrain_network_g"]).resolve()
        versions = Versions(record, checkpoint, custom_imports)
        names = versions.names()
        for pictures in picture_sets(record):
            _keep_inputs(store, pictures)
            metrics = _metrics(record, pictures)
            for version in names:
                told = f"{versions.digest} {version} {pictures.key} {metrics}"
                key = hashlib.sha256(told.encode()).hexdigest()
                if store.metrics(pictures.name, version, key) is None:
                    _run(store, versions, version, pictures, metrics, key)


def _keep_inputs(store: PictureStore, pictures: PictureSet) -> None:
    if store.metrics(pictures.name, LOW, pictures.key) is not None:
        return
    for picture in pictures:
        store.keep(pictures.name, LOW, picture.name, to_pixels(picture.low))
        if picture.truth is not None:
            store.keep(pictures.name, TRUTH, picture.name, to_pixels(picture.truth))
    store.keep_metrics(pictures.name, LOW, pictures.key, {})


def _metrics(record: Mapping, pictures: PictureSet) -> dict[str, Mapping]:
    """Metrics by name: those that the run asked for, or else PSNR and SSIM as the field reports them."""
    common = {"crop_border": record["scale"], "test_y_channel": True}
    usual = {name: {"type": f"calculate_{name}", **common} for name in ("psnr", "ssim")}
    asked = (record["options"].get("val") or {}).get("metrics") or usual
    judged, self_psnr = split_metrics(asked, pictures[0].truth is not None)
    return {**judged, **(self_psnr or {"self_psnr": {"type": SELF_PSNR}})}


@torch.no_grad()
def _run(
    store: PictureStore,
    versions: Versions,
    version: str,
    pictures: PictureSet,
    metrics: Mapping,
    key: str,
):
    """Pictures and metrics of a set by one version."""
    label = f"{pictures.name}, {title(version)}"
    judged: dict[str, list[float]] = {}
    with (
        versions.running(version) as net,
        Observations(net, label, len(pictures), net, versions.val) as observed,
    ):
        for picture in pictures:
            image = picture.low.to(versions.device)
            output = observed.upscale(image)
            observed.note(picture.name, image, output)
            store.keep(pictures.name, version, picture.name, to_pixels(output))
            for name, options in metrics.items():
                full = (
                    store.read(pictures.name, FULL, picture.name)
                    if options["type"] == SELF_PSNR
                    else None
                )
                other = full if full is not None else picture.truth
                if options["type"] != SELF_PSNR or version != FULL:
                    judged.setdefault(name, []).append(judge(output, other, options))
    figures = {**{name: mean(values) for name, values in judged.items()}, **observed.means()}
    if version == FULL:
        bitops = mean(row["float_bitops"] for row in observed.images)
        figures |= {"bitops": bitops, "weight_bytes": describe_size(versions.net)["float_bytes"]}
    store.keep_metrics(pictures.name, version, key, figures, observed.facts())
    say(
        f"Report: {label}: "
        + ", ".join(f"{name} {format_figure(name, value)}" for name, value in figures.items())
    )


def judge(output: Tensor, other: Tensor | np.ndarray | None, options: Mapping) -> float:
    """A metric of BasicSR's for an output, ``(1, C, H, W)``, against another image if there is one."""
    images = {"img": _as_basicsr(to_pixels(output))}
    if other is not None:
        images["img2"] = _as_basicsr(
            to_pixels(other) if isinstance(other, Tensor) else other[..., : output.shape[1]]
        )
    return calculate_metric(images, options)


def _as_basicsr(pixels: np.ndarray) -> np.ndarray:
    """BGR, and grey without an axis for its channel, as BasicSR's metrics are given."""
    return pixels[..., ::-1] if pixels.shape[2] == 3 else pixels[..., 0]
