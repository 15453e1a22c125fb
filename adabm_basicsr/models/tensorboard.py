"""Bits as TensorBoard shows them: histograms, and pictures of layers and of an image's tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adabm_basicsr.data.images import to_unit_range
from adabm_basicsr.data.patches import PatchDataset
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.report.plots import layer_plot, map_colours
from adabm_basicsr.runs.observations import bit_map

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    MakeWriter = Callable[[dict[str, Any]], SummaryWriter | None]

# The writer of the run at work. BasicSR gives it to validation alone.
_writer: ContextVar[SummaryWriter | None] = ContextVar("writer", default=None)


def keeping_writer(init_tb_loggers: MakeWriter) -> MakeWriter:
    """BasicSR's ``init_tb_loggers``, whose writer is kept for `current_writer`."""

    def wrapped(opt: dict[str, Any]) -> SummaryWriter | None:
        writer = init_tb_loggers(opt)
        _writer.set(writer)
        return writer

    return wrapped


def current_writer() -> SummaryWriter | None:
    """BasicSR's writer of the run at work; None without ``use_tb_logger``."""
    return _writer.get()


class TrainingBits:
    """Writes the bits of layers and of calibration images as training changes them.

    It does so with validation sets or without.

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
        dataset: PatchDataset,
    ) -> None:
        self.writer = writer
        self.net = net
        self.name = name
        self.patches = patches
        largest = max(dataset.images, key=lambda image: image.size)
        image = torch.from_numpy(to_unit_range(largest)).permute(2, 0, 1)
        self.image = image[None].to(patches[0].device)

    def write(self, iteration: int) -> None:
        """Write what the bits are after an iteration."""
        log_layer_bits(self.writer, layer_bits(self.net), iteration)
        bits = [float(self.net.bits_for(patch)) for patch in self.patches]
        tiles = bit_map(self.net, self.name, self.image)
        log_image_bits(self.writer, self.name, bits, tiles, iteration)


def layer_bits(net: QuantizedNetwork) -> dict[str, float]:
    """Bits of each layer whose input is quantized, base and layer factor together.

    Layers come in the order that they run in.
    """
    found = {}
    for name, quantizer in net.activation_quantizers().items():
        found[name] = quantizer.bits_of_layer().item()
    return found


def log_layer_bits(writer: SummaryWriter, found: Mapping[str, float], iteration: int) -> None:
    """Write the bits that `layer_bits` found; nothing where no input is quantized."""
    if not found:
        return
    for layer, bits in found.items():
        writer.add_scalar(f"bits/{layer}", bits, iteration)
    writer.add_histogram("bits of layers", np.array([*found.values()]), iteration)
    writer.add_figure("bits of layers", layer_plot(found), iteration)


def log_image_bits(
    writer: SummaryWriter,
    name: str,
    bits: Sequence[float],
    tiles: Mapping[str, Any] | None,
    iteration: int,
) -> None:
    """Write the bits that the images of a set were quantized at, and those of a large one's tiles.

    Args:
        writer: BasicSR's, from ``use_tb_logger``; wandb follows it.
        name: Name of the set.
        bits: Mean bits of each image.
        tiles: As `bit_map` gives them.
        iteration: Where training is.
    """
    writer.add_histogram(f"bits of images/{name}", np.array(bits), iteration)
    if tiles:
        picture = map_colours(tiles["bits"], scale=16)
        writer.add_image(f"bit map/{name}", picture, iteration, dataformats="HWC")
