"""What quantization costs networks that take clips: loss in dB, bits, BitOPs and cost, by frame.

    python tests/benchmarks/video.py --out DIR [--networks BasicVSR EDVR] [--bits 8 6 4]
        [--recipes paper fast best] [--weights DIR] [--frames N] [--crop PIXELS] [--iterations N]

Everything is quantized but the estimation of flow, by `adabm-basicsr train` with an option file.
Needs ../shared. Runs that are in ``DIR/video.json`` already aren't repeated, so each choice of
frames and so on wants a folder of its own. Prints a table, and writes ``video.json``, ``video.md``
and ``video.png`` (PSNR by frame).
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from kept_runs import run_missing
from networks import ROOT, SHARED
from tabulate import tabulate
from torch import Tensor
from training_runs import quantize_by

from adabm_basicsr import QuantizedNetwork
from adabm_basicsr.data.frames import FrameRange, read_clip
from adabm_basicsr.data.images import to_unit_range
from adabm_basicsr.data.prepare_clips import prepare_clips
from adabm_basicsr.deployment.chunks import windows_of
from adabm_basicsr.quantization.bit_mapping import frames_of
from adabm_basicsr.quantization.measures.cost import CostMeter
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

SCALE = 4
FILMS = SHARED / "data" / "video"
NETWORKS: dict[str, dict[str, Any]] = {
    "BasicVSR": {"num_feat": 32, "num_block": 5},
    "EDVR": {"num_feat": 32, "num_frame": 5},
}
WEIGHTS = {"BasicVSR": "BasicVSR_x4_f32b5.pth", "EDVR": "EDVR_x4_f32.pth"}
STRETCHES_OF_CLIP = 20
RECIPES = ("paper", "fast", "best")
# An error that lives on from frame to frame shows in frames that are run within longer clips.
LENGTHS = (10, 26, 50)
SHOWN_CLIP = "bikes"


class Stretches(NamedTuple):
    """What a network is calibrated and fine-tuned on.

    Attributes:
        frames: Of each stretch.
        crop: LR pixels along each side.
        batch: Stretches at a time.
    """

    frames: int
    crop: int
    batch: int


# BasicVSR estimates flow on six sizes, which takes 64 pixels.
STRETCHES = {"BasicVSR": Stretches(7, 64, 1), "EDVR": Stretches(5, 32, 2)}


@dataclass(frozen=True)
class Film:
    """A part of a clip of ../shared.

    Attributes:
        file: A video file or a folder of frames.
        frames: Which of its frames.
        shrink: Factor by which frames are made smaller first.
    """

    file: str
    frames: FrameRange
    shrink: int = 1

    @property
    def name(self) -> str:
        """That of the clip."""
        return Path(self.file).stem


CALIBRATION = (
    Film("bikes.mp4", FrameRange(0, 179)),
    Film("bigbuckbunny.mp4", FrameRange(0, 89), shrink=2),
)
TEST = (Film("bikes.mp4", FrameRange(200, 249)), Film("demo_000", FrameRange(0, 29)))


class Made(NamedTuple):
    """What a network made of a clip.

    Attributes:
        frames: ``(T, C, H, W)`` in 0..1.
        fab: Mean bits.
        bitops: BitOPs of a frame.
    """

    frames: Tensor
    fab: float
    bitops: float


def make_clips() -> None:
    """Make the folders ``LR`` and ``GT`` of ``clips/calibration`` and of ``clips/test``."""
    for film in CALIBRATION:
        make_clip(film, Path("clips", "calibration"))
    for film in TEST:
        make_clip(film, Path("clips", "test"))


def make_clip(film: Film, root: Path) -> None:
    """Make the frames of a film below ``root``, unless they are there."""
    if Path(root, "LR", film.name).is_dir():
        return
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        new = Path(temporary)
        prepare_clips([FILMS / film.file], SCALE, new / "LR", new / "GT", film.frames, film.shrink)
        for kind in ("GT", "LR"):
            Path(root, kind).mkdir(exist_ok=True)
            Path(new, kind, film.name).rename(Path(root, kind, film.name))


def options(
    kind: str, bits: int, recipe: str, weights: Path, iterations: int | None = None
) -> dict[str, Any]:
    """An option file, as a user would write it."""
    stretches = STRETCHES[kind]
    return {
        "name": run_name(kind, bits, recipe).replace(", ", "_"),
        "model_type": "AdaBMModel",
        "scale": SCALE,
        "num_gpu": "auto",
        "manual_seed": 0,
        "datasets": {
            "train": {
                "name": "Clips",
                "type": "ClipCalibrationDataset",
                "dataroot_lq": "clips/calibration/LR",
                "lq_size": stretches.crop,
                "num_frame": stretches.frames,
                "dataset_enlarge_ratio": STRETCHES_OF_CLIP,
                "batch_size_per_gpu": stretches.batch,
                "num_worker_per_gpu": 0,
            }
        },
        "network_g": {
            "type": "AdaBMNetwork",
            "network": {"type": kind, **NETWORKS[kind]},
            "w_bits": bits,
            "a_bits": bits,
            "recipe": recipe,
            "fully_quantized": True,
        },
        "path": {"pretrain_network_g": str(weights / WEIGHTS[kind])},
        "train": {"total_iter": iterations},
        "logger": {"print_freq": 40, "save_checkpoint_freq": 10000, "use_tb_logger": False},
    }


def run_name(kind: str, bits: int, recipe: str) -> str:
    """Key of a run in the results."""
    return f"{kind}, W{bits}A{bits}, {recipe}"


def run(opt: dict[str, Any], frames: int | None = None, crop: int | None = None) -> dict[str, Any]:
    """Quantize and measure once.

    Args:
        opt: The option file.
        frames: Frames of the test clips to take at most, from their first.
        crop: LR pixels along each side to take at most, from the centre.
    """
    net, cost = quantize_by(opt)
    clips = {}
    for film in TEST:
        clips[film.name] = measure(net, *read_pair(film.name, frames, crop))
    return {
        "network": opt["network_g"]["network"]["type"],
        "bits": opt["network_g"]["w_bits"],
        "recipe": opt["network_g"]["recipe"],
        **cost,
        "clips": clips,
    }


def read_pair(name: str, frames: int | None, crop: int | None) -> tuple[Tensor, Tensor]:
    """LR frames and ground truth of a test clip, ``(T, C, H, W)`` each; see `run`."""
    low = read_frames(Path("clips", "test", "LR", name), frames)
    truth = read_frames(Path("clips", "test", "GT", name), frames)
    for axis in (2, 3):
        size = low.shape[axis]
        kept = min(crop or size, size)
        first = (size - kept) // 2
        low = low.narrow(axis, first, kept)
        truth = truth.narrow(axis, SCALE * first, SCALE * kept)
    return low, truth


def read_frames(folder: Path, count: int | None = None) -> Tensor:
    """The first frames of a clip, ``(T, C, H, W)`` in 0..1."""
    frames = itertools.islice(read_clip(folder), count)
    pixels = np.stack([to_unit_range(frame) for frame in frames])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def measure(net: QuantizedNetwork, low: Tensor, truth: Tensor) -> dict[str, Any]:
    """What quantization costs on a clip.

    Args:
        net: A calibrated network.
        low: LR frames, ``(T, C, H, W)`` in 0..1.
        truth: Their ground truth, ``(T, C, sH, sW)`` in 0..1.

    Returns:
        ``loss`` in dB below full precision; ``fab``; ``bitops`` of a frame; ``by_frame``, PSNR of
        both and self-PSNR; ``errors``, see `errors_by_length`.
    """
    made = super_resolve(net, low)
    with net.full_precision():
        full = super_resolve(net, low)
    by_frame = {
        "psnr": _psnr_by_frame(made.frames, truth),
        "full_precision_psnr": _psnr_by_frame(full.frames, truth),
        "self_psnr": _psnr_by_frame(made.frames, full.frames),
    }
    return {
        "loss": mean(by_frame["full_precision_psnr"]) - mean(by_frame["psnr"]),
        "fab": made.fab,
        "bitops": made.bitops,
        "by_frame": by_frame,
        "errors": errors_by_length(net, low),
    }


def _psnr_by_frame(frames: Tensor, others: Tensor) -> list[float]:
    pairs = zip(frames.split(1), others.split(1), strict=True)
    return [pixel_psnr(frame, other) for frame, other in pairs]


@torch.no_grad()
def super_resolve(net: QuantizedNetwork, low: Tensor) -> Made:
    """Run a network on a clip: all of it at once, or a window for each frame."""
    frames = []
    bits = []
    bitops = 0.0
    with CostMeter(net) as meter:
        for clip in _inputs(net, low):
            frames.append(frames_of(net(clip)))
            cost = meter.read()
            bits.append(cost.fab)
            bitops += cost.bitops
    return Made(torch.cat(frames), mean(bits), bitops / len(low))


def _inputs(net: QuantizedNetwork, low: Tensor) -> Iterator[Tensor]:
    clip = low.unsqueeze(0)
    if net.clips.any_length:
        yield clip
        return
    yield from windows_of(clip, net.clips.frames, range(len(low)))


def errors_by_length(net: QuantizedNetwork, low: Tensor) -> dict[int, float]:
    """Mean squared error against full precision of the same frames within clips of `LENGTHS`.

    The frames are those of the shortest clip, in the middle of all longer ones. Lengths that the
    clip doesn't have are left out, and all lengths of networks that take windows: a frame's window
    is the same in all of them.
    """
    errors: dict[int, float] = {}
    if not net.clips.any_length:
        return errors
    shortest = LENGTHS[0]
    for length in LENGTHS:
        if length > len(low):
            break
        first = (len(low) - length) // 2
        clip = low[first : first + length]
        made = super_resolve(net, clip).frames
        with net.full_precision():
            full = super_resolve(net, clip).frames
        start = (length - shortest) // 2
        difference = made[start : start + shortest] - full[start : start + shortest]
        errors[length] = float(difference.square().mean())
    return errors


def growth(errors: dict[Any, float]) -> float | None:
    """How much larger the error is in the longest clip than in the shortest; None for one."""
    if len(errors) < 2:
        return None
    found = list(errors.values())
    return found[-1] / found[0]


def make_table(runs: dict[str, dict[str, Any]]) -> str:
    """A line for each run."""
    rows = []
    for found in runs.values():
        bits = f"W{found['bits']}A{found['bits']}"
        row = {"network": found["network"], "bits": bits, "recipe": found["recipe"]}
        for name, clip in found["clips"].items():
            row[f"{name} loss (dB)"] = f"{clip['loss']:.3f}"
            row[f"{name} FAB"] = f"{clip['fab']:.2f}"
            row[f"{name} TeraBitOPs a frame"] = f"{clip['bitops'] / 1e12:.3f}"
            grown = growth(clip["errors"])
            row[f"{name} error grows by"] = "" if grown is None else f"{grown:.2f}"
        row["forward units"] = f"{found['units']:.0f}"
        rows.append(row)
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def plot(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """PSNR by frame of one clip, a panel for each network and bits."""
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for found in runs.values():
        panels.setdefault((found["network"], found["bits"]), []).append(found)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, ((network, bits), of_panel) in zip(axes[0], panels.items(), strict=True):
        full = of_panel[0]["clips"][SHOWN_CLIP]["by_frame"]["full_precision_psnr"]
        axis.plot(full, color="black", label="full precision")
        for found in of_panel:
            axis.plot(found["clips"][SHOWN_CLIP]["by_frame"]["psnr"], label=found["recipe"])
        axis.set_title(f"{network} x{SCALE}, W{bits}A{bits}, {SHOWN_CLIP}")
        axis.set_xlabel("frame")
        axis.set_ylabel("PSNR (dB)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for clips, experiments and results"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument(
        "--weights", type=Path, default=ROOT / "tests" / "weights", help="folder of the weights"
    )
    parser.add_argument("--frames", type=int, help="of each test clip, at most")
    parser.add_argument("--crop", type=int, help="sides of the LR frames in pixels, at most")
    parser.add_argument("--iterations", type=int, help="of fine-tuning; by default the recipe's")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, print and write."""
    args = read_arguments()
    weights = args.weights.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    make_clips()
    asked = {}
    for kind, bits, recipe in itertools.product(args.networks, args.bits, args.recipes):
        opt = options(kind, bits, recipe, weights, args.iterations)
        asked[run_name(kind, bits, recipe)] = partial(run, opt, args.frames, args.crop)
    runs = run_missing(Path("video.json"), asked)
    table = make_table(runs)
    Path("video.md").write_text(table + "\n")
    plot(runs, Path("video.png"))
    print(table)


if __name__ == "__main__":
    main()
