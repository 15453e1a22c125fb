"""``adabm-basicsr demo``: the whole way on a real network, from photographs to a report."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

from adabm_basicsr.bridge.pipeline import close_logger, log_to_file, run_pipeline
from adabm_basicsr.data.images import read_image
from adabm_basicsr.demo.photographs import VALIDATION, make_datasets
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.report.build import print_figures, report_run
from adabm_basicsr.report.figures import VARIANTS
from adabm_basicsr.report.tables import sets_table
from adabm_basicsr.runs.pictures import LOW, TRUTH, PictureStore
from adabm_basicsr.terminal import add_output_flags, bars, json_alone, say

WEIGHTS = "EDSR_Mx4_f64b16_BSDS400_fp16.pth"
SET = "Photographs"
MARKER = "demo.log"  # tells a folder of an earlier demo from one that isn't ours to clear


def option_file(name: str) -> Path:
    """Path of one of the demo's option files, in an installed package or in the repository."""
    installed = Path(str(resources.files("adabm_basicsr"))) / "options_files" / "demo" / name
    return (
        installed if installed.is_file() else Path(__file__).parents[2] / "options" / "demo" / name
    )


def run_demo(out: Path, quiet: bool = False) -> dict:
    """Quantize EDSR statically and adaptively, test both and the full-precision network, and compare.

    Args:
        out: Folder for everything that the demo writes; an earlier demo's is cleared.
        quiet: Whether to show warnings alone on the console.

    Returns:
        The figures of its report, as ``report/report.json`` has them.

    Raises:
        AdaBMError: ``out`` holds other files.
    """
    _clear(out)
    before = Path.cwd()
    os.chdir(out)  # the option files name what lies below the working directory, as a user's own do
    log_to_file(MARKER, quiet)
    try:
        with bars(not quiet):
            say("Making low-resolution versions of scikit-image's photographs")
            make_datasets(Path("data"))
            _copy_weights(Path("weights"))
            say("Testing EDSR x4 in full precision")
            _run("test_full_precision.yml", is_train=False)
            for name, text in (
                ("static", "static quantization, W4A4"),
                ("adaptive", "adaptive quantization, W4A4"),
            ):
                say(f"Quantizing: {text}")
                _run(f"train_{name}.yml", is_train=True)
                say(f"Testing: {text}")
                _run(f"test_{name}.yml", is_train=False)
        _collect_pictures()
        return report_run(Path("results/adaptive"), Path("report"))
    finally:
        close_logger()
        os.chdir(before)


def _clear(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise AdaBMError(
            f"--out: {out} holds files that are not an earlier demo's; name another folder"
        )
    for name in ("data", "weights", "experiments", "results", "report"):
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
    flags = [
        "-opt",
        str(option_file(options)),
        "--force_yml",
        f"num_gpu={min(torch.cuda.device_count(), 1)}",
    ]
    run_pipeline(
        flags, is_train, prog=f"adabm-basicsr {'train' if is_train else 'test'}", own_log=False
    )


def _collect_pictures() -> None:
    """Put what the three tests made beside one another, where the report looks for it."""
    store = PictureStore(Path("results/adaptive"))
    folders = {version: Path("results") / version / "visualization" / SET for version in VARIANTS}
    for name in VALIDATION:
        stem = Path(name).stem
        store.keep(SET, LOW, stem, read_image(Path("data/validation/LRbicx4") / f"{stem}.png"))
        store.keep(SET, TRUTH, stem, read_image(Path("data/validation/GTmod4") / f"{stem}.png"))
        for version, folder in folders.items():
            store.keep(SET, version, stem, read_image(folder / f"{stem}_{version}.png"))
    for version in VARIANTS:
        metrics = json.loads((Path("results") / version / "metrics.json").read_text())[SET]
        store.keep_metrics(SET, version, MARKER, metrics)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr demo``."""
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr demo", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("adabm_demo"),
        help="folder to write to (default: ./adabm_demo)",
    )
    add_output_flags(parser)
    args = parser.parse_args(argv)
    start = time.time()
    with json_alone(args.json):
        figures = run_demo(args.out, args.quiet)
    if args.json:
        print_figures(figures)
    elif not args.quiet:
        print(
            f"\n{sets_table(figures).text()}\n\n{time.time() - start:.0f} s. Written to {args.out}:"
        )
        print("  report/report.html  demo.log  experiments/adaptive/models/net_g_latest.pth")
