"""Bits as TensorBoard shows them: histograms, and pictures of layers and of an image's tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adabm_basicsr.report.plots import layer_plot, map_colours

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from adabm_basicsr.models.observations import Observations


def log_bits(writer: SummaryWriter, name: str, observed: Observations, layer_bits: dict[str, float], step: int) -> None:
    """Write the bits that a validation set ``name`` was quantized at.

    Args:
        writer: BasicSR's, from ``use_tb_logger``; wandb follows it.
        name: Name of the set.
        observed: What validation noted.
        layer_bits: Bits of each layer, base and layer factor together.
        step: Iteration.
    """
    for layer, bits in layer_bits.items():
        writer.add_scalar(f"bits/{layer}", bits, step)
    writer.add_histogram(f"bits of images/{name}", np.array([row["bits"] for row in observed.images]), step)
    if not layer_bits:
        return
    writer.add_histogram("bits of layers", np.array([*layer_bits.values()]), step)
    writer.add_figure("bits of layers", layer_plot(layer_bits), step)
    if bit_map := observed.bit_map():
        writer.add_image(f"bit map/{name}", map_colours(bit_map["bits"], scale=16), step, dataformats="HWC")
