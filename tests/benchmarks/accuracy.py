"""Accuracy of the recipes: PSNR, SSIM and self-PSNR on test sets, with bits, BitOPs and cost.

    python tests/benchmarks/accuracy.py --out DIR [--networks EDSR IMDN] [--bits W4A4 W3A3]
        [--variants paper best] [--scopes full] [--seeds 1 2 3] [--sets DIR]
        [--scale 2 --weights FILE.pth]

Each run goes through `adabm-basicsr train` with an option file; runs that are in
``DIR/accuracy.json`` already aren't repeated. Prints our results, and what was published for the
same networks and bits beside ours. Writes ``accuracy.json``, ``accuracy.md`` and ``accuracy.png``
(PSNR against BitOPs). Needs ../shared; ``docs/generate_results.py`` takes the results into
docs/results.md.

Test sets are folders ``Set5``, ``Set14``, ``B100`` and ``Urban100`` of ``--sets``, with BasicSR's
``LRbicx4`` and ``GTmod12`` or with ``LR_bicubic/X4`` and ``HR``. Those that aren't there are left
out, and so are small networks of tests/weights.
"""

from __future__ import annotations

import argparse
import itertools
import os
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from image_sets import ImageSet, find_sets, images_of, to_bgr
from kept_runs import run_missing
from machine import describe_cpu
from networks import (
    NETWORKS,
    PERCEPTUAL,
    SHARED,
    SMALL_NETWORKS,
    bits_argument,
    calibration_folder,
    make_example_project_importable,
    option_file,
    parse_bits,
    weights_path,
)
from results import (
    SCOPES,
    means,
    published_beside,
    summarise,
    table_of_comparison,
    table_of_results,
)
from tabulate import tabulate
from training_runs import quantize_by

from adabm_basicsr.quantization.measures.cost import CostMeter, size_bytes
from adabm_basicsr.quantization.measures.psnr import pixel_psnr
from adabm_basicsr.quantization.recipes import RECIPES

SCALES = (2, 4)  # of the calibration images in ../shared
SHOWN_SET = "Set14"
OBSERVERS = ("minmax", "percentile", "omse")
VARIANTS = {
    "paper": {"recipe": "paper"},
    "fast": {"recipe": "fast"},
    "best": {"recipe": "best"},
    "thorough": {"recipe": "thorough"},
    "best, fixed bits": {"recipe": "best", "ingredients": {"adaptive": False}},
    "best, no image levels": {
        "recipe": "best",
        "ingredients": {"image_bits": [0, 0], "image_ranges": False},
    },
    "best, not allocated": {
        "recipe": "best",
        "ingredients": {"adaptive": False, "allocate": False},
    },
    "best, calibration alone": {"recipe": "best", "total_iter": 0},
}
for observer in OBSERVERS:
    VARIANTS[f"static, {observer}"] = {"recipe": "static", "observer": observer}
for observer in OBSERVERS:
    VARIANTS[f"static, {observer}, published quantizers"] = {
        "recipe": "static",
        "observer": observer,
        "ingredients": {"integer": False},
    }
MAIN_VARIANTS = ("static, omse", "paper", "fast", "best")


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        network: Architecture, a key of `NETWORKS` or `SMALL_NETWORKS`.
        scale: Its factor.
        scope: What is quantized, a key of `SCOPES`.
        bits: Bits of weights and activations, such as "W4A4".
        variant: A key of `VARIANTS`.
        seed: ``manual_seed``.
    """

    network: str
    scale: int
    scope: str
    bits: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Key of the run in the results."""
        network = f"{self.network} x{self.scale}"
        return f"{network}, {self.scope}, {self.bits}, {self.variant}, seed {self.seed}"


def options(setting: Setting, weights: Path) -> dict:
    """An option file, as a user would write it."""
    own = dict(VARIANTS[setting.variant])
    iterations = {}
    if "total_iter" in own:
        iterations["total_iter"] = own.pop("total_iter")
    w_bits, a_bits = parse_bits(setting.bits)
    return option_file(
        setting.name.replace(", ", "_").replace(" ", "_"),
        setting.network,
        setting.seed,
        images=80,
        lq_size=64,
        iterations=iterations,
        scale=setting.scale,
        weights=weights,
        w_bits=w_bits,
        a_bits=a_bits,
        **SCOPES[setting.scope],
        **own,
    )


def run(setting: Setting, weights: Path, sets: list[ImageSet]) -> dict:
    """Quantize and measure once."""
    net, cost = quantize_by(options(setting, weights))
    figures = {image_set.name: measure(net, image_set) for image_set in sets}
    bits_of_images = []
    for image in images_of(calibration_folder(setting.scale)):
        bits_of_images.append(float(net.bits_for(image)))

    cpu = describe_cpu()
    return {
        **asdict(setting),
        "weights": weights.name,
        "date": date.today().isoformat(),
        "cpu": f"{cpu['model']}, {cpu['flags']}",
        "bytes": size_bytes(net),
        **cost,
        "sets": figures,
        "calibration_fab": mean(bits_of_images),
    }


@torch.no_grad()
def measure(net: torch.nn.Module, image_set: ImageSet) -> dict[str, float]:
    """Means over the images of a set."""
    from basicsr.metrics import calculate_psnr, calculate_ssim

    border = {"crop_border": image_set.scale, "test_y_channel": True}
    rows = []
    for image, truth in image_set.pairs():
        with CostMeter(net) as meter:
            output = net(image)
            cost = meter.read()
        with net.full_precision():
            teacher = net(image)
        row = {
            "fab": cost.fab,
            "bitops": cost.bitops,
            "self_psnr": pixel_psnr(output, teacher),
        }
        for prefix, result in (("", output), ("full_precision_", teacher)):
            made = to_bgr(result)
            row[f"{prefix}psnr"] = calculate_psnr(made, truth, **border)
            row[f"{prefix}ssim"] = calculate_ssim(made, truth, **border)
        rows.append(row)
    return means(rows)


def make_tables(runs: dict[str, dict]) -> str:
    """Our results, means over the seeds, and published losses beside ours."""
    rows = summarise(runs.values())
    tables = [table_of_results(rows), table_of_comparison(rows, published_beside(rows))]
    texts = []
    for table in tables:
        if table:
            texts.append(tabulate(table, headers="keys", tablefmt="github", disable_numparse=True))
    return "\n\n".join(texts)


def plot(runs: dict[str, dict], path: Path) -> None:
    """PSNR against BitOPs on `SHOWN_SET`, a panel for each network."""
    import matplotlib.pyplot as plt

    shown = [result for result in runs.values() if SHOWN_SET in result["sets"]]
    kinds = list(dict.fromkeys(result["network"] for result in shown))
    if not kinds:
        return
    figure, panels = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 4), squeeze=False)
    for kind, panel in zip(kinds, panels[0], strict=True):
        metric = "self_psnr" if kind in PERCEPTUAL else "psnr"
        lines: dict[str, list[dict]] = {}
        for result in shown:
            if result["network"] == kind:
                label = f"x{result['scale']}, {result['scope']}, {result['variant']}"
                lines.setdefault(label, []).append(result["sets"][SHOWN_SET])
        for label, points in lines.items():
            points.sort(key=lambda point: point["bitops"])
            x = [point["bitops"] / 1e12 for point in points]
            y = [point[metric] for point in points]
            panel.plot(x, y, "o-", label=label, alpha=0.8)
        panel.set_title(f"{kind}, {SHOWN_SET}")
        panel.set_xlabel("TeraBitOPs per image")
        panel.set_ylabel(f"{metric.replace('_', '-')} (dB)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def read_arguments() -> argparse.Namespace:
    """What the command line asks for: test sets, and networks with their weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for experiments and results"
    )
    known = [*NETWORKS, *SMALL_NETWORKS]
    parser.add_argument("--networks", nargs="+", choices=known, help="all that there are")
    parser.add_argument("--scale", type=int, default=4, choices=SCALES)
    parser.add_argument(
        "--weights",
        type=Path,
        help="your own weights of the only network; they need an --out of their own",
    )
    parser.add_argument(
        "--scopes",
        nargs="+",
        choices=list(SCOPES),
        help="full: all layers; body: the body alone, as transformers are published; by default "
        "full, and body for networks that were trained for looks",
    )
    parser.add_argument(
        "--bits",
        nargs="+",
        type=bits_argument,
        default=["W4A4", "W3A3", "W2A2"],
        help="such as W8A8 W4A8 W4A4",
    )
    parser.add_argument(
        "--variants", nargs="+", default=MAIN_VARIANTS, choices=list(VARIANTS), metavar="VARIANT"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--sets", type=Path, default=SHARED / "data", help="folder of the test sets"
    )
    args = parser.parse_args()
    try:
        args.weights = find_weights(args.networks, args.scale, args.weights)
        args.sets = find_sets(args.sets.resolve(), args.scale)
    except ValueError as error:
        parser.error(str(error))
    return args


def find_weights(networks: list[str] | None, scale: int, weights: Path | None) -> dict[str, Path]:
    """The file of weights of each network to measure.

    Args:
        networks: What was asked for; None for all whose weights are there. A line is printed for
            each of them that is left out.
        scale: Factor of the networks.
        weights: The user's own weights.

    Raises:
        ValueError: A file is missing, or weights of one network can't be those of several.
    """
    if weights is not None:
        if networks is None or len(networks) != 1:
            raise ValueError("--weights: --networks must name the one network that they are of")
        if not weights.is_file():
            raise ValueError(f"--weights: there is no file {weights}")
        return {networks[0]: weights.resolve()}
    if scale != 4:
        raise ValueError(f"--scale {scale}: needs --weights, as the weights at hand are of x4")

    found = {}
    for kind in networks or [*NETWORKS, *SMALL_NETWORKS]:
        path = weights_path(kind)
        if path.is_file():
            found[kind] = path
        elif networks is None:
            print(f"{kind} is left out: there are no weights {path}")
        else:
            raise ValueError(f"--networks {kind}: there are no weights {path}")
    return found


def list_settings(args: argparse.Namespace) -> list[Setting]:
    """The runs that are asked for, those of the first seed first.

    A line says what a recipe doesn't take.
    """
    choices = []
    for bits, variant in itertools.product(args.bits, args.variants):
        _, a_bits = parse_bits(bits)
        recipe = VARIANTS[variant]["recipe"]
        if a_bits < RECIPES[recipe].arithmetic.min_a_bits:
            print(f"{variant} at {bits} is left out: the recipe takes no {a_bits} bits")
        else:
            choices.append((bits, variant))

    settings = []
    for seed, kind in itertools.product(args.seeds, args.weights):
        scopes = args.scopes or ["body" if kind in PERCEPTUAL else "full"]
        for (bits, variant), scope in itertools.product(choices, scopes):
            settings.append(Setting(kind, args.scale, scope, bits, variant, seed))
    return settings


def main() -> None:
    """Run what is missing, print and write."""
    args = read_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    make_example_project_importable()
    os.chdir(args.out)
    asked = {}
    for setting in list_settings(args):
        asked[setting.name] = partial(run, setting, args.weights[setting.network], args.sets)
    runs = run_missing(Path("accuracy.json"), asked)
    tables = make_tables(runs)
    Path("accuracy.md").write_text(tables + "\n")
    plot(runs, Path("accuracy.png"))
    print(tables)


if __name__ == "__main__":
    main()
