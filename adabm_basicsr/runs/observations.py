"""What a validation set shows of a network beside BasicSR's metrics: costs and bits, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import mean

import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from torch import Tensor, nn

from adabm_basicsr.deployment.tiles import upscale_tiles
from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.distributed import gather_objects
from adabm_basicsr.quantization.measures.cost import Cost, CostMeter, size_bytes
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import progress

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
        images: For each image ``name``, ``complexity``, ``bits`` (FAB), ``bitops``, ``float_bitops`` and the
            ``self_psnr`` metrics.
        bit_counts: How many times a layer used each number of bits.
        largest: Name of the largest LR image, the image and its output.
    """

    def __init__(
        self,
        net: nn.Module,
        name: str,
        count: int,
        forward: Callable[[Tensor], Tensor],
        tiles: Mapping | None = None,
        self_psnr: dict[str, dict] | None = None,
    ) -> None:
        self.net = net
        self.forward = forward
        self.tiles = tiles or {}
        self.quantized = isinstance(net, QuantizedNetwork)
        self.self_psnr = (self_psnr or {}) if self.quantized else {}
        self.images: list[dict] = []
        self.bit_counts: Counter[int] = Counter()
        self.largest: tuple[str, Tensor, Tensor] | None = None
        self.meter = CostMeter(net)
        self.passes: list[Cost] = []  # of the image at work
        self.bar = progress(f"Validation {name}", count)

    def __enter__(self) -> Observations:
        self.meter.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.meter.__exit__(*error)
        self.bar.close()

    def upscale(self, image: Tensor) -> Tensor:
        """Super-resolve ``image``, ``(1, C, H, W)``, in tiles if the options ask for them, and note each pass."""
        tile = self.tiles.get("tile")
        return (
            upscale_tiles(self._run, image, tile, self.tiles["tile_overlap"])
            if tile
            else self._run(image)
        )

    def _run(self, image: Tensor) -> Tensor:
        self.meter.macs.clear()  # judging an image, or trying what sizes the network takes, is no cost of this one
        output = self.forward(image)
        self.passes.append(self.meter.read(len(image)))
        if self.quantized:
            for quantizer in self.net.activation_quantizers().values():
                if quantizer.last_bits is not None and not quantizer.fixed:
                    self.bit_counts.update(round(bits) for bits in quantizer.last_bits.tolist())
        return output

    def note(self, name: str, image: Tensor, output: Tensor) -> None:
        """Note what the passes since the last image cost, which made ``output`` of ``image``, ``(1, C, H, W)``."""
        row = {"name": name, "complexity": float(image_complexity(image).mean())}
        row["bits"] = mean(cost.fab for cost in self.passes)
        for cost in ("bitops", "float_bitops"):
            row[cost] = sum(getattr(done, cost) for done in self.passes)
        self.images.append(row)
        self.passes.clear()
        if self.largest is None or image.numel() > self.largest[1].numel():
            self.largest = name, image, output
        self._compare(row, image, output)
        self.bar.update(1)

    def _compare(self, row: dict, image: Tensor, output: Tensor) -> None:
        if not self.self_psnr:
            return
        with self.net.full_precision():
            full = self.upscale(image)
        self.passes.clear()  # not a cost of the quantized network
        pair = {"img": tensor2img([output.cpu()]), "img2": tensor2img([full.cpu()])}
        row |= {name: calculate_metric(pair, options) for name, options in self.self_psnr.items()}

    def gather(self, count: int) -> None:
        """Add what other processes noted of the images that they took, each every so manieth of ``count``."""
        if len(self.images) == count:
            return
        shares = gather_objects((self.images, self.bit_counts))
        self.images = [
            shares[index % len(shares)][0][index // len(shares)] for index in range(count)
        ]
        self.bit_counts = sum((counts for _, counts in shares), Counter())

    def means(self) -> dict[str, float]:
        """Metrics of the set: its FAB, BitOPs, size and self-PSNR."""
        costs = {name: mean(row[name] for row in self.images) for name in self.self_psnr}
        costs |= {
            "fab": mean(row["bits"] for row in self.images),
            "bitops": mean(row["bitops"] for row in self.images),
        }
        return {**costs, "weight_bytes": size_bytes(self.net)}

    def facts(self) -> dict:
        """What a record or report keeps of the set, in JSON's types."""
        return {
            "images": self.images,
            "bit_counts": dict(self.bit_counts),
            "bit_map": self.bit_map(),
        }

    def bit_map(self) -> dict | None:
        """That of the largest image, see `bit_map`."""
        return bit_map(self.net, *self.largest[:2]) if self.quantized and self.largest else None


def bit_map(net: QuantizedNetwork, name: str, image: Tensor) -> dict | None:
    """Bits of each tile of ``image``, ``(1, C, H, W)``, row by row; None where bits don't follow the image."""
    if net.image_mapping is None:
        return None
    tile = max(min(TILE, min(image.shape[2:]) // MIN_TILES), MIN_TILE)
    return {"image": name, "tile": tile, "bits": tile_bits(net, image, tile)}


@torch.no_grad()
def tile_bits(net: QuantizedNetwork, image: Tensor, tile: int) -> list[list[float]]:
    """Mean bits that each tile of ``image``, ``(1, C, H, W)``, would be quantized at; border ones are smaller."""
    rows = [row.split(tile, 3) for row in image.split(tile, 2)]
    return [[float(net.bits_for(part)) for part in row] for row in rows]
