"""What bits and ranges that follow the image are worth, on tiles of images.

    python tests/benchmarks/adaptivity.py --out DIR [--networks EDSR IMDN] [--bits W4A4 W3A3]
        [--images FOLDER FOLDER] [--tile 32] [--tiles 300] [--seed 1]

A network is quantized by recipe `fast` with the same ranges for all images and bits that follow the
layer alone. Each tile is then run with all of `OPTIONS`: bits added to those of all layers, times
factors on all ranges. From these errors follow the best choices for all tiles, for classes of tiles
by complexity, and for each tile by its own error, which bounds what any mapping could gain. Choices
use the bits that were asked for on average. Those of classes are made on every other tile, and
judged on the rest, as all are. The recipe's own mapping stands beside them, of a second run.

Two goals are measured, as they want opposite choices: the squared error over all tiles, which
complex ones have most of, and the mean PSNR of the tiles, to which simple ones count as much.

Images are LR images; large photographs may be taken as such. Each folder of ``--images`` is
measured for itself. Needs ../shared. Prints a table and writes ``adaptivity.json`` and
``adaptivity.md``; ``docs/generate_adaptivity.py`` takes the results into docs/adaptivity.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from image_sets import images_of
from kept_runs import run_missing
from networks import (
    NETWORKS,
    PERCEPTUAL,
    SHARED,
    SMALL_NETWORKS,
    bits_argument,
    make_example_project_importable,
    option_file,
    parse_bits,
)
from results import SCOPES
from tabulate import tabulate
from torch import Tensor
from training_runs import quantize_by

from adabm_basicsr import QuantizedNetwork
from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.measures.cost import CostMeter
from adabm_basicsr.quantization.measures.psnr import pixel_errors, psnr_of_errors

SET14 = SHARED / "data" / "Set14" / "LRbicx4"
TILES_AT_ONCE = 8
CLASSES = 5
FEWEST = 10 * CLASSES  # tiles, so that choices for a class are made on some
HALVINGS = 60
# Choices of classes are made on every other tile, and all are judged on the rest.
FITTED = slice(0, None, 2)
JUDGED = slice(1, None, 2)
# Ingredients of a recipe whose bits and ranges are the same for all images.
UNMAPPED = {"image_bits": [0, 0], "image_ranges": False}
GOALS = ("squared error", "mean PSNR")


@dataclass(frozen=True)
class Option:
    """A way to run a tile.

    Attributes:
        bits: Added to those of all layers that aren't fixed.
        factor: On the ranges of their inputs.
    """

    bits: int
    factor: float


BITS = (-2, -1, 0, 1, 2)
FACTORS = (0.6, 0.8, 1.0, 1.25, 1.6)
OPTIONS = [Option(bits, factor) for bits, factor in itertools.product(BITS, FACTORS)]
SAME_BITS = [index for index, option in enumerate(OPTIONS) if option.bits == 0]
ALL = list(range(len(OPTIONS)))
# What may differ between tiles, by the name of its line. Bits alone would be chosen on ranges that
# suit the bits asked for; what they add to ranges is what counts.
CHOICES = {"ranges": SAME_BITS, "ranges and bits": ALL}
ONE_RANGE = "one range for all"
OWN_MAPPING = "the recipe's mapping"
COLUMNS = (
    ONE_RANGE,
    OWN_MAPPING,
    *(f"{name} by {grouping}" for grouping in ("class", "tile") for name in CHOICES),
)


@contextmanager
def run_with(net: QuantizedNetwork, option: Option) -> Iterator[None]:
    """Within this context a network runs with other bits and ranges than its own."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for quantizer in net.activation_quantizers().values():
            if quantizer.adaptive:
                quantizer.layer_factor += option.bits
                quantizer.lower *= option.factor
                quantizer.upper *= option.factor
    try:
        yield
    finally:
        net.load_state_dict(state)


def cut(images: Sequence[Tensor], side: int, count: int) -> Tensor:
    """Tiles of images, evenly taken: ``(N, C, side, side)`` in 0..1, about ``count`` of them."""
    tiles = []
    for image in images:
        rows = image.unfold(2, side, side).unfold(3, side, side)  # (1, C, Y, X, side, side)
        tiles.append(rows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
    joined = torch.cat(tiles)
    return joined[:: max(len(joined) // count, 1)]


@torch.no_grad()
def measure(net: QuantizedNetwork, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of each tile with each option, ``(N, K)``, and mean bits, ``(K,)``."""
    parts = tiles.split(TILES_AT_ONCE)
    with net.full_precision():
        full = [net(part) for part in parts]
    errors = []
    bits = []
    for option in OPTIONS:
        found = []
        with run_with(net, option), CostMeter(net) as meter:
            for part, of_part in zip(parts, full, strict=True):
                found.append(pixel_errors(net(part), of_part))
            bits.append(meter.read().fab)
        errors.append(torch.cat(found).double())
    return torch.stack(errors, dim=1), torch.tensor(bits, dtype=torch.float64)


def choose(costs: Tensor, bits: Tensor, sizes: Tensor, mean: float) -> Tensor:
    """The option of least cost for each group, such that mean bits stay within ``mean``.

    A price of a bit is raised until they do; it is found by halving.

    Args:
        costs: Of each group with each option, ``(G, K)``.
        bits: Of each option, ``(K,)``.
        sizes: Tiles of each group, ``(G,)``.
        mean: What tiles may use on average; at least one option uses as few.

    Returns:
        Indices of options, ``(G,)``.
    """

    def at_price(price: float) -> Tensor:
        return (costs + price * sizes.unsqueeze(1) * bits).argmin(1)

    def used(chosen: Tensor) -> float:
        return float((sizes * bits[chosen]).sum() / sizes.sum())

    chosen = at_price(0.0)
    if used(chosen) <= mean:
        return chosen
    low = 0.0
    high = float(costs.max() - costs.min()) + 1.0
    while used(at_price(high)) > mean:
        high *= 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if used(at_price(middle)) > mean:
            low = middle
        else:
            high = middle
    return at_price(high)


def costs_of(goal: str, errors: Tensor) -> Tensor:
    """What a goal makes of squared errors, of which it wants the smallest sum."""
    if goal == "mean PSNR":
        return -psnr_of_errors(errors)
    return errors


def reached(goal: str, errors: Tensor) -> float:
    """A goal in dB, from the squared error of each tile, ``(N,)``."""
    if goal == "mean PSNR":
        return float(psnr_of_errors(errors).mean())
    return float(psnr_of_errors(errors.mean()))


def gains(errors: Tensor, bits: Tensor, complexity: Tensor) -> dict[str, dict[str, float]]:
    """What choices reach for each goal, in dB.

    Args:
        errors: Squared error of each tile with each of `OPTIONS`, ``(N, K)``.
        bits: Mean bits of each option, ``(K,)``.
        complexity: Of each tile, ``(N,)``.

    Returns:
        By the name of the choice, the dB of each of `GOALS`.
    """
    order = complexity.argsort()
    classes = torch.empty_like(order)
    classes[order] = torch.arange(len(order)) * CLASSES // len(order)
    asked = float(bits[OPTIONS.index(Option(0, 1.0))])
    lines: dict[str, dict[str, float]] = {}
    for goal in GOALS:
        costs = costs_of(goal, errors)
        one = costs[FITTED][:, SAME_BITS].sum(0).argmin()
        chosen = torch.tensor(SAME_BITS)[one.expand(len(costs[JUDGED]))]
        lines.setdefault(ONE_RANGE, {})[goal] = _judge(goal, errors[JUDGED], chosen)
        for name, allowed in CHOICES.items():
            # A tile by itself is a group of its own, and knows its own errors.
            tiles = torch.arange(len(costs[JUDGED]))
            groupings = {
                "class": (costs[FITTED], classes[FITTED], classes[JUDGED]),
                "tile": (costs[JUDGED], tiles, tiles),
            }
            for grouping, (seen, groups_of_seen, groups_of_judged) in groupings.items():
                by_group = _choose_for_groups(
                    seen[:, allowed], groups_of_seen, bits[allowed], asked
                )
                chosen = torch.tensor(allowed)[by_group[groups_of_judged]]
                line = lines.setdefault(f"{name} by {grouping}", {})
                line[goal] = _judge(goal, errors[JUDGED], chosen)
    return lines


def _choose_for_groups(costs: Tensor, groups: Tensor, bits: Tensor, mean: float) -> Tensor:
    """`choose` for groups of tiles.

    Args:
        costs: Of each tile with each option, ``(N, K)``.
        groups: Index of each tile's group, ``(N,)``, at most ``G - 1``.
        bits: Of each option, ``(K,)``.
        mean: What tiles may use on average.

    Returns:
        Indices of options, ``(G,)``.
    """
    count = int(groups.max()) + 1
    of_groups = torch.zeros(count, costs.shape[1], dtype=costs.dtype)
    of_groups.index_add_(0, groups, costs)
    sizes = torch.bincount(groups, minlength=count).double()
    return choose(of_groups, bits, sizes, mean)


def _judge(goal: str, errors: Tensor, chosen: Tensor) -> float:
    return reached(goal, errors.gather(1, chosen.unsqueeze(1)).squeeze(1))


def run(kind: str, bits: str, seed: int, sets: dict[str, Tensor]) -> dict:
    """Quantize a network without a mapping of images; find what choices reach on sets of tiles."""
    net = quantized(f"{kind}_{bits}_seed{seed}", kind, bits, seed, ingredients=UNMAPPED)
    found = {}
    for name, tiles in sets.items():
        errors, of_options = measure(net, tiles)
        complexity = image_complexity(tiles)
        found[name] = {
            "tiles": len(tiles),
            "complexity": float(complexity.median()),
            "lines": gains(errors, of_options, complexity),
        }
    return {"network": kind, "bits": bits, "seed": seed, "sets": found}


@torch.no_grad()
def run_mapped(kind: str, bits: str, seed: int, sets: dict[str, Tensor]) -> dict:
    """Quantize a network with the recipe's own mapping; what it reaches on sets of tiles."""
    net = quantized(f"{kind}_{bits}_mapped_seed{seed}", kind, bits, seed)
    found = {}
    for name, tiles in sets.items():
        errors = []
        bits_of_tiles = []
        for part in tiles[JUDGED].split(TILES_AT_ONCE):
            result = net(part, details=True)
            bits_of_tiles.append(result.bits)
            with net.full_precision():
                errors.append(pixel_errors(result.output, net(part)))
        joined = torch.cat(errors).double()
        line = {goal: reached(goal, joined) for goal in GOALS}
        fab = float(torch.cat(bits_of_tiles).mean())
        found[name] = {"tiles": len(tiles), "fab": fab, "lines": {OWN_MAPPING: line}}
    return {"network": kind, "bits": bits, "seed": seed, "sets": found}


def quantized(name: str, kind: str, bits: str, seed: int, **choices: Any) -> QuantizedNetwork:
    """A network, quantized by recipe `fast` with an option file."""
    w_bits, a_bits = parse_bits(bits)
    opt = option_file(
        name,
        kind,
        seed,
        images=80,
        lq_size=64,
        iterations={},
        recipe="fast",
        w_bits=w_bits,
        a_bits=a_bits,
        **SCOPES["body" if kind in PERCEPTUAL else "full"],
        **choices,
    )
    net, _ = quantize_by(opt)
    return net


def table_of_choices(runs: Iterable[dict]) -> list[dict[str, str]]:
    """A line for each network, its bits and set of images; a column for each choice.

    A cell has what `GOALS` reach, each by its own choice.
    """
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for of_run in runs:
        for images, found in of_run["sets"].items():
            network, bits = of_run["network"], of_run["bits"]
            first = {"network": f"{network} x4", "bits": bits, "images": images}
            row = rows.setdefault((network, bits, images), first)
            for choice in COLUMNS:
                if choice in found["lines"]:
                    reached_by = [found["lines"][choice][goal] for goal in GOALS]
                    row[choice] = " / ".join(f"{value:.2f}" for value in reached_by) + " dB"
                row.setdefault(choice, "")
            row["seeds"] = "1"
    return list(rows.values())


def _name_of(folder: Path) -> str:
    """Name of a set of images: LR images lie in a folder of the set's."""
    if folder.name.startswith("LR"):
        return folder.parent.name
    return folder.name


def main() -> None:
    """Run what is missing, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument(
        "--networks", nargs="+", default=["EDSR", "IMDN"], choices=[*NETWORKS, *SMALL_NETWORKS]
    )
    parser.add_argument("--bits", nargs="+", type=bits_argument, default=["W4A4", "W8A4", "W3A3"])
    parser.add_argument(
        "--images", nargs="+", type=Path, default=[SET14], help="folders of LR images"
    )
    parser.add_argument("--tile", type=int, default=32, help="side in pixels")
    parser.add_argument("--tiles", type=int, default=300, help="how many tiles to take, about")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sets = {}
    for folder in args.images:
        tiles = cut(list(images_of(folder)), args.tile, args.tiles)
        if len(tiles) < FEWEST:
            parser.error(f"--images {folder}: has {len(tiles)} tiles; at least {FEWEST} are needed")
        sets[_name_of(folder)] = tiles
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    make_example_project_importable()
    asked = {}
    for kind, bits in itertools.product(args.networks, args.bits):
        name = f"{kind}, {bits}, seed {args.seed}"
        asked[name] = partial(run, kind, bits, args.seed, sets)
        asked[f"{name}, {OWN_MAPPING}"] = partial(run_mapped, kind, bits, args.seed, sets)
    rows = table_of_choices(run_missing(Path("adaptivity.json"), asked).values())
    table = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    Path("adaptivity.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
