"""What a validation set shows of a network beside BasicSR's metrics: costs and bits by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from torch import Tensor, nn

from adabm_basicsr.deployment.tiles import upscale_tiles
from adabm_basicsr.quantization.bit_mapping import frames_of, image_class, image_complexity
from adabm_basicsr.quantization.checks import CLIP_AXES
from adabm_basicsr.quantization.distributed import gather_objects
from adabm_basicsr.quantization.measures.cost import Cost, CostMeter, size_bytes
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import progress
from adabm_basicsr.runs.facts import describe_classes

TILE = 32  # LR pixels
MIN_TILES = 8  # along the shorter side of an image, as far as tiles don't get too small to judge
MIN_TILE = 8


class Observations:
    """Notes on each image of a validation set. Use it as a context manager.

    Args:
        net: The network.
        name: Name of the set.
        count: Images in it.
        forward: Runs the network on an image or tile, ``(1, C, H, W)``.
        tiles: Options of validation: ``tile`` and ``tile_overlap``, where images are run in tiles.
        self_psnr: Metrics that compare with full precision, by the name that the options give them.

    Attributes:
        images: For each image ``name``, ``complexity``, ``bits`` (FAB), ``bitops``,
            ``float_bitops`` and the ``self_psnr`` metrics.
        of_frames: Of the last clip, its ``fab`` and ``self_psnr`` metrics by frame that was made.
        bit_counts: How many times a layer used each number of bits.
        largest: Name of the largest LR image that this process took, the image and its output; of
            a clip its middle frames.
    """

    def __init__(
        self,
        net: nn.Module,
        name: str,
        count: int,
        forward: Callable[[Tensor], Tensor],
        tiles: Mapping | None = None,
        self_psnr: Mapping[str, Mapping] | None = None,
    ) -> None:
        self.net = net
        self.quantized: QuantizedNetwork | None = None
        if isinstance(net, QuantizedNetwork):
            self.quantized = net
        self.forward = forward
        self.tiles = tiles or {}
        self.self_psnr: Mapping[str, Mapping] = {}
        if self.quantized is not None and self_psnr:
            self.self_psnr = self_psnr
        self.images: list[dict[str, Any]] = []
        self.of_frames: dict[str, list[float]] = {}
        self.bit_counts: Counter[int] = Counter()
        self.largest: tuple[str, Tensor, Tensor] | None = None
        self.meter = CostMeter(net)
        # Of the image at work.
        self.passes: list[Cost] = []
        self.bar = progress(f"Validation {name}", count)

    def __enter__(self) -> Observations:
        self.meter.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.meter.__exit__(*error)
        self.bar.close()

    def upscale(self, image: Tensor) -> Tensor:
        """Super-resolve an image and note each pass; in tiles if the options ask for them.

        Args:
            image: ``(1, C, H, W)`` in 0..1.
        """
        tile = self.tiles.get("tile")
        if tile:
            return upscale_tiles(self._run, image, tile, self.tiles["tile_overlap"])
        return self._run(image)

    def _run(self, image: Tensor) -> Tensor:
        # Judging an image, or trying what sizes the network takes, is no cost of this one.
        self.meter.macs.clear()
        output = self.forward(image)
        self.passes.append(self.meter.read(len(image)))
        if self.quantized is not None:
            self._count_bits(self.quantized)
        return output

    def _count_bits(self, net: QuantizedNetwork) -> None:
        """Count the bits that layers used in the last pass."""
        for quantizer in net.activation_quantizers().values():
            if quantizer.last_bits is None or quantizer.fixed:
                continue
            used = quantizer.last_bits.tolist()
            self.bit_counts.update(round(bits) for bits in used)

    def note(self, name: str, image: Tensor, output: Tensor) -> None:
        """Note what an image cost: the passes since the last one.

        Args:
            name: Of the image.
            image: ``(1, C, H, W)`` in 0..1, or a clip ``(1, T, C, H, W)``.
            output: What the passes made of it.
        """
        row: dict[str, Any] = {
            "name": name,
            "complexity": float(image_complexity(frames_of(image)).mean()),
            "bits": mean(cost.fab for cost in self.passes),
            "bitops": sum(cost.bitops for cost in self.passes),
            "float_bitops": sum(cost.float_bitops for cost in self.passes),
        }
        self.images.append(row)
        self.passes.clear()
        shown = middle_frame(image)
        if self.largest is None or shown.numel() > self.largest[1].numel():
            self.largest = (name, shown, middle_frame(output))
        self.of_frames = {"fab": self._bits_of_frames(image, output, row["bits"])}
        if self.quantized is not None and self.self_psnr:
            self.of_frames |= self._compare(self.quantized, image, output)
            row |= {name: mean(self.of_frames[name]) for name in self.self_psnr}
        self.bar.update(1)

    def _bits_of_frames(self, image: Tensor, output: Tensor, bits: float) -> list[float]:
        """Bits of each frame that was made; where it was one, ``bits`` of the pass."""
        if self.quantized is None or output.dim() != CLIP_AXES:
            return [bits] * len(frames_of(output))
        return self.quantized.bits_of_frames(image)[0].tolist()

    def _compare(
        self, net: QuantizedNetwork, image: Tensor, output: Tensor
    ) -> dict[str, list[float]]:
        """Metrics of an output against that in full precision, by frame."""
        with net.full_precision():
            full = self.upscale(image)
        # These are no cost of the quantized network.
        self.passes.clear()
        values: dict[str, list[float]] = {name: [] for name in self.self_psnr}
        made = frames_of(output).cpu().split(1)
        for frame, wanted in zip(made, frames_of(full).cpu().split(1), strict=True):
            pair = {"img": tensor2img([frame]), "img2": tensor2img([wanted])}
            for name, options in self.self_psnr.items():
                values[name].append(calculate_metric(pair, options))
        return values

    def gather(self, count: int) -> None:
        """Add what other processes noted: they took the ``count`` images of the set in turn."""
        if len(self.images) == count:
            return
        shares = gather_objects((self.images, self.bit_counts))
        self.images = []
        for index in range(count):
            turn, process = divmod(index, len(shares))
            images, _ = shares[process]
            self.images.append(images[turn])
        self.bit_counts = Counter()
        for _, counts in shares:
            self.bit_counts += counts

    def means(self) -> dict[str, float]:
        """Metrics of the set: its self-PSNR, FAB, BitOPs and size."""
        metrics = {}
        for name in self.self_psnr:
            metrics[name] = mean(row[name] for row in self.images)
        metrics["fab"] = mean(row["bits"] for row in self.images)
        metrics["bitops"] = mean(row["bitops"] for row in self.images)
        metrics["weight_bytes"] = size_bytes(self.net)
        return metrics

    def facts(self) -> dict[str, Any]:
        """What a record or report keeps of the set, in JSON's types."""
        return {
            "images": self.images,
            "bit_counts": dict(self.bit_counts),
            "bit_map": self.bit_map(),
        }

    def bit_map(self) -> dict[str, Any] | None:
        """That of the largest image, see `bit_map`."""
        if self.quantized is None or self.largest is None:
            return None
        name, image, _ = self.largest
        return bit_map(self.quantized, name, image)


def middle_frame(image: Tensor) -> Tensor:
    """The middle frame ``(1, C, H, W)`` of a clip; an image as it is."""
    frames = frames_of(image)
    middle = len(frames) // 2
    return frames[middle : middle + 1]


@torch.no_grad()
def bit_map(net: QuantizedNetwork, name: str, image: Tensor) -> dict[str, Any] | None:
    """How the tiles of an image would be quantized, were each run on its own.

    Args:
        net: The calibrated network.
        name: Of the image.
        image: ``(1, C, H, W)`` in 0..1.

    Returns:
        Names and numbers in JSON's types, None where nothing follows the image: ``image``, its
        name; ``tile``, the size of tiles in LR pixels, those at the border are smaller; ``bits``,
        mean bits of each tile, row by row; ``classes``, the image class of each tile, 0 to 2;
        ``class_facts``, what these mean, see `describe_classes`.
    """
    if net.image_mapping is None or net.clips is not None:  # those of clips have no tiles
        return None
    tile = max(min(TILE, min(image.shape[2:]) // MIN_TILES), MIN_TILE)
    bits = []
    classes = []
    for row in image.split(tile, dim=2):
        tiles = row.split(tile, dim=3)
        bits.append([float(net.bits_for(part)) for part in tiles])
        classes.append([int(image_class(net.image_mapping(part))) for part in tiles])
    return {
        "image": name,
        "tile": tile,
        "bits": bits,
        "classes": classes,
        "class_facts": describe_classes(net),
    }
