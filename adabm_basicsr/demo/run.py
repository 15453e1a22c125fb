"""``adabm-basicsr demo``: the whole way on a real network, from photographs to a table and a picture."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import torch
from tabulate import tabulate

from adabm_basicsr.demo.photographs import VALIDATION, make_datasets
from adabm_basicsr.demo.picture import compare_crops
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path
from adabm_basicsr.pipeline import close_logger, log_to_file, run_pipeline

WEIGHTS = "EDSR_Mx4_f64b16_BSDS400_fp16.pth"
RUNS = ("full_precision", "static", "adaptive")
MARKER = "demo.log"  # tells a folder of an earlier demo from one that isn't ours to clear


def option_file(name: str) -> Path:
    """Path of one of the demo's option files, in an installed package or in the repository."""
    installed = Path(str(resources.files("adabm_basicsr"))) / "options_files" / "demo" / name
    return installed if installed.is_file() else Path(__file__).parents[2] / "options" / "demo" / name


def run_demo(out: Path) -> dict[str, dict[str, float]]:
    """Quantize EDSR statically and adaptively, test both and the full-precision network, and compare.

    Args:
        out: Folder for everything that the demo writes; an earlier demo's is cleared.

    Returns:
        For each run its ``psnr``, ``ssim``, ``fab``, ``bitops`` and ``weight_bytes``, as in ``summary.json``.

    Raises:
        AdaBMError: ``out`` holds other files.
    """
    start = time.time()
    _clear(out)
    before = Path.cwd()
    os.chdir(out)  # the option files name what lies below the working directory, as a user's own do
    log_to_file(MARKER)
    try:
        _say("Making low-resolution versions of scikit-image's photographs")
        make_datasets(Path("data"))
        _copy_weights(Path("weights"))
        _say("Testing EDSR x4 in full precision")
        _run("test_full_precision.yml", is_train=False)
        for name, text in (("static", "static quantization, W4A4"), ("adaptive", "adaptive quantization, W4A4")):
            _say(f"Quantizing: {text}")
            _run(f"train_{name}.yml", is_train=True)
            _say(f"Testing: {text}")
            _run(f"test_{name}.yml", is_train=False)
        summary = {run: _read_metrics(run) for run in RUNS}
        _write_results(summary)
    finally:
        close_logger()
        os.chdir(before)
    print(f"\n{make_table(summary)}\n\n{time.time() - start:.0f} s. Written to {out}:")
    print("  comparison.png  summary.json  demo.log  experiments/adaptive/models/net_g_latest.pth")
    return summary


def _clear(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise AdaBMError(f"--out: {out} holds files that are not an earlier demo's; name another folder")
    for name in ("data", "weights", "experiments", "results"):
        shutil.rmtree(out / name, ignore_errors=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AdaBMError(f"--out: cannot make folder {out}: {error.strerror}") from error


def _copy_weights(folder: Path) -> None:
    folder.mkdir()
    with resources.as_file(resources.files("adabm_basicsr.demo") / WEIGHTS) as source:
        shutil.copyfile(source, folder / WEIGHTS)


def _run(options: str, is_train: bool) -> None:
    # One GPU at most: more would multiply the batch, and the demo is short as it is.
    flags = ["-opt", str(option_file(options)), "--force_yml", f"num_gpu={min(torch.cuda.device_count(), 1)}"]
    run_pipeline(flags, is_train, prog="adabm-basicsr demo", own_log=False)


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


def _read_metrics(run: str) -> dict[str, float]:
    return json.loads((Path("results") / run / "metrics.json").read_text())["Photographs"]


def make_table(summary: dict[str, dict[str, float]]) -> str:
    """The comparison as text; BitOPs and size also as a share of full precision."""
    whole = summary["full_precision"]
    rows = [
        [
            run.replace("_", " "),
            f"{m['psnr']:.2f}",
            f"{m['ssim']:.4f}",
            f"{m['fab']:.2f}",
            f"{m['bitops'] / 1e9:.0f} G ({100 * m['bitops'] / whole['bitops']:.1f} %)",
            f"{m['weight_bytes'] / 1e6:.2f} MB ({100 * m['weight_bytes'] / whole['weight_bytes']:.1f} %)",
        ]
        for run, m in summary.items()
    ]
    headers = ["EDSR x4", "PSNR (dB)", "SSIM", "FAB (bits)", "BitOPs", "size"]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", *["right"] * 5))


def _write_results(summary: dict[str, dict[str, float]]) -> None:
    with atomic_path("summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2))
    images = {name: _versions(Path(name).stem) for name in VALIDATION}
    captions = {run.replace("_", " "): f"{m['psnr']:.2f} dB, {m['fab']:.1f} bits" for run, m in summary.items()}
    compare_crops(images, captions, Path("comparison.png"))


def _versions(name: str) -> dict[str, np.ndarray]:
    truth = _read(Path("data/validation/GTmod4") / f"{name}.png")
    small = _read(Path("data/validation/LRbicx4") / f"{name}.png")
    enlarged = cv2.resize(small, truth.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    runs = {
        run.replace("_", " "): _read(Path("results") / run / "visualization" / "Photographs" / f"{name}_{run}.png")
        for run in RUNS
    }
    return {"LR (enlarged)": enlarged, **runs, "ground truth": truth}


def _read(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr demo``."""
    parser = argparse.ArgumentParser(prog="adabm-basicsr demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("adabm_demo"), help="folder to write to (default: ./adabm_demo)"
    )
    run_demo(parser.parse_args(argv).out)
