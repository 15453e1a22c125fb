"""Runs the demo, from photographs to a report."""

from __future__ import annotations

import json
import os
import shutil
from importlib import resources
from pathlib import Path

import torch

from adabm_basicsr.bridge.pipeline import close_logger, log_to_file, run_pipeline
from adabm_basicsr.data.images import read_image
from adabm_basicsr.demo.photographs import VALIDATION, make_datasets
from adabm_basicsr.errors import AdaBMError, OptionError
from adabm_basicsr.report.build import report_run
from adabm_basicsr.report.figures import VARIANTS
from adabm_basicsr.runs.pictures import LOW, TRUTH, PictureStore
from adabm_basicsr.terminal import bars, say

WEIGHTS = "EDSR_Mx4_f64b16_BSDS400_fp16.pth"
SET = "Photographs"
FOLDERS = ("data", "weights", "experiments", "results", "report")
MARKER = "demo.log"  # by which a folder of an earlier demo is known from one that isn't ours


def option_file(name: str) -> Path:
    """Path of one of the demo's option files, in an installed package or in the repository."""
    package = Path(str(resources.files("adabm_basicsr")))
    installed = package / "options_files" / "demo" / name
    if installed.is_file():
        return installed
    return package.parent / "options" / "demo" / name


def run_demo(out: Path, quiet: bool = False) -> dict:
    """Quantize EDSR statically and adaptively, test both and full precision, and compare.

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
            _test("full_precision")
            _quantize_and_test("static")
            _quantize_and_test("adaptive")
        _collect_pictures()
        return report_run(Path("results/adaptive"), Path("report"))
    finally:
        close_logger()
        os.chdir(before)


def _clear(out: Path) -> None:
    is_foreign = out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file()
    if is_foreign:
        raise OptionError(
            f"--out: {out} holds files that are not an earlier demo's; name another folder"
        )
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AdaBMError(f"--out: cannot make folder {out}: {error.strerror}") from error


def _copy_weights(folder: Path) -> None:
    folder.mkdir()
    packaged = resources.files("adabm_basicsr.demo") / WEIGHTS
    with resources.as_file(packaged) as source:
        shutil.copyfile(source, folder / WEIGHTS)


def _quantize_and_test(kind: str) -> None:
    text = f"{kind} quantization, W4A4"
    say(f"Quantizing: {text}")
    flags = _flags(f"train_{kind}.yml")
    run_pipeline(flags, is_train=True, prog="adabm-basicsr train", own_log=False)
    say(f"Testing: {text}")
    _test(kind)


def _test(kind: str) -> None:
    flags = _flags(f"test_{kind}.yml")
    run_pipeline(flags, is_train=False, prog="adabm-basicsr test", own_log=False)


def _flags(options: str) -> list[str]:
    # One GPU at most: more would multiply the batch, and the demo is short as it is.
    gpus = min(torch.cuda.device_count(), 1)
    return ["-opt", str(option_file(options)), "--force_yml", f"num_gpu={gpus}"]


def _collect_pictures() -> None:
    """Put what the three tests made beside one another, where the report looks for it."""
    validation = Path("data/validation")
    results = Path("results")
    store = PictureStore(results / "adaptive")
    for name in VALIDATION:
        stem = Path(name).stem
        store.keep(SET, LOW, stem, read_image(validation / "LRbicx4" / f"{stem}.png"))
        store.keep(SET, TRUTH, stem, read_image(validation / "GTmod4" / f"{stem}.png"))
        for variant in VARIANTS:
            folder = results / variant / "visualization" / SET
            store.keep(SET, variant, stem, read_image(folder / f"{stem}_{variant}.png"))
    for variant in VARIANTS:
        metrics = json.loads((results / variant / "metrics.json").read_text())
        store.keep_metrics(SET, variant, MARKER, metrics[SET])
