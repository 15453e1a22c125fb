"""Bits as TensorBoard shows them: histograms, and pictures of layers and of an image's tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np
import torch

from adabm_basicsr.data.calibration_dataset import CalibrationDataset
from adabm_basicsr.data.images import to_unit_range
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.report.plots import layer_plot, map_colours
from adabm_basicsr.runs.observations import bit_map

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


_writer: ContextVar[SummaryWriter | None] = ContextVar("writer", default=None)


def keeping_writer(init_tb_loggers: Callable[[Mapping], SummaryWriter | None]) -> Callable:
    """BasicSR's ``init_tb_loggers``; the writer, which validation alone is given, is kept for `current_writer`."""

    def wrapped(opt: Mapping) -> SummaryWriter | None:
        writer = init_tb_loggers(opt)
        _writer.set(writer)
        return writer

    return wrapped


def current_writer() -> SummaryWriter | None:
    """BasicSR's writer of the run at work; None without ``use_tb_logger``."""
    return _writer.get()


class TrainingBits:
    """Writes the bits of layers and of calibration images as training changes them, validation sets or none.

    Args:
        writer: BasicSR's.
        net: The calibrated network.
        name: Name of the calibration set.
        patches: LR patches that it was calibrated on, each ``(1, C, H, W)`` in 0..1.
        dataset: What they are of; the bits of its largest image's tiles are shown.
    """

    def __init__(
        self,
        writer: SummaryWriter,
        net: QuantizedNetwork,
        name: str,
        patches: Sequence[torch.Tensor],
        dataset: CalibrationDataset,
    ) -> None:
        self.writer, self.net, self.name, self.patches = writer, net, name, patches
        largest = max(dataset.images, key=lambda image: image.size)
        self.image = (
            torch.from_numpy(to_unit_range(largest)).permute(2, 0, 1)[None].to(patches[0].device)
        )

    def write(self, step: int) -> None:
        """Write what the bits are after ``step`` iterations."""
        log_layer_bits(self.writer, layer_bits(self.net), step)
        bits = [float(self.net.bits_for(patch)) for patch in self.patches]
        log_image_bits(self.writer, self.name, bits, bit_map(self.net, self.name, self.image), step)


def layer_bits(net: QuantizedNetwork) -> dict[str, float]:
    """Bits of each layer whose input is quantized, base and layer factor together, in execution order."""
    return {
        name: quantizer.bits_of_layer().item()
        for name, quantizer in net.activation_quantizers().items()
    }


def log_layer_bits(writer: SummaryWriter, found: Mapping[str, float], step: int) -> None:
    """Write the bits that `layer_bits` found; nothing where no input is quantized."""
    if not found:
        return
    for layer, bits in found.items():
        writer.add_scalar(f"bits/{layer}", bits, step)
    writer.add_histogram("bits of layers", np.array([*found.values()]), step)
    writer.add_figure("bits of layers", layer_plot(found), step)


def log_image_bits(
    writer: SummaryWriter, name: str, bits: Sequence[float], tiles: Mapping | None, step: int
) -> None:
    """Write the bits that the images of a set ``name`` were quantized at, and those of a large one's tiles.

    Args:
        writer: BasicSR's, from ``use_tb_logger``; wandb follows it.
        name: Name of the set.
        bits: Mean bits of each image.
        tiles: As `bit_map` gives them.
        step: Iteration.
    """
    writer.add_histogram(f"bits of images/{name}", np.array(bits), step)
    if tiles:
        writer.add_image(
            f"bit map/{name}", map_colours(tiles["bits"], scale=16), step, dataformats="HWC"
        )
