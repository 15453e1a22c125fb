"""Chooses the form of a file for OpenVINO that is the fastest one on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from adabm_basicsr.deployment.onnx_network import OnnxNetwork
from adabm_basicsr.errors import ExportError
from adabm_basicsr.quantization.measures.psnr import pixel_psnr
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.preparation import copy_of

SIDE = 128  # pixels of the image that is timed
DETAIL = 4  # pixels from one random value of it to the next
ROUNDS = 15
SECONDS = 20  # after which no further round begins
MIN_AGREEMENT = 50  # dB


@dataclass
class TriedForm:
    """A form that was tried.

    Attributes:
        form: A key of `deployment.onnx.fusion.FORMS`.
        network: Its file in OpenVINO.
        agreement: PSNR of what it makes to what the simulation makes, in dB.
        times: Of each run, in milliseconds.
    """

    form: str
    network: OnnxNetwork
    agreement: float
    times: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """Median time of a run."""
        return median(self.times)

    @property
    def agrees(self) -> bool:
        """Whether it makes what the simulation makes."""
        return self.agreement >= MIN_AGREEMENT


def fastest_form(
    net: QuantizedNetwork,
    save: Callable[[QuantizedNetwork, Path, str], object],
    forms: Sequence[str],
) -> tuple[str, list[str]]:
    """Run a network in several forms by turns, and compare them.

    Args:
        net: A calibrated network.
        save: Writes it to a path in a form.
        forms: What to try; the first one is kept where none agrees with the simulation.

    Returns:
        The fastest form of those that agree with the simulation, and a table as lines, which also
        says what couldn't be compiled.

    Raises:
        AdaBMError: A file can't be written, or none can be run.
    """
    # Forms are of integers, whatever the complexity of the image.
    net = copy_of(net)
    net.full_precision_above = None
    image = _image(net.in_channels)
    with torch.no_grad():
        expected = net(image)
    tried = []
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for form in forms:
            path = Path(folder) / f"{form}.onnx"
            save(net, path, form)
            network = OnnxNetwork(path, "openvino")
            try:
                output = network(image)  # which compiles the graph, too
            except ExportError as error:
                failed.append(f"{form}: {error}")
                continue
            tried.append(TriedForm(form, network, float(pixel_psnr(output, expected))))
        if not tried:
            raise ExportError("; ".join(failed))
        _time(tried, image)
    return choose(tried), table(tried) + failed


def choose(tried: Sequence[TriedForm]) -> str:
    """The fastest form of those that agree with the simulation; the first one if none does."""
    agreeing = [candidate for candidate in tried if candidate.agrees]
    if not agreeing:
        return tried[0].form
    return min(agreeing, key=lambda candidate: candidate.milliseconds).form


def table(tried: Sequence[TriedForm]) -> list[str]:
    """What was measured, a line for each form, and which one is kept."""
    heading = "form"
    width = max(len(heading), *(len(candidate.form) for candidate in tried))
    lines = [f"{heading:{width}}  milliseconds  agreement"]
    chosen = choose(tried)
    for candidate in tried:
        remark = ""
        if not candidate.agrees:
            remark = f"  below {MIN_AGREEMENT} dB"
        if candidate.form == chosen:
            remark += "  chosen"
        lines.append(
            f"{candidate.form:{width}}  {candidate.milliseconds:12.1f}  "
            f"{candidate.agreement:6.1f} dB{remark}"
        )
    return lines


def _image(channels: int) -> Tensor:
    """A smooth random image, ``(1, C, SIDE, SIDE)`` in 0..1, the same each time."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels, SIDE // DETAIL, SIDE // DETAIL, generator=generator)
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)


def _time(tried: Sequence[TriedForm], image: Tensor) -> None:
    """Time the forms by turns, so that what else the machine does slows all of them alike."""
    end = time.perf_counter() + SECONDS
    for _ in range(ROUNDS):
        for candidate in tried:
            start = time.perf_counter()
            candidate.network(image)
            candidate.times.append(1000 * (time.perf_counter() - start))
        if time.perf_counter() > end:
            return
