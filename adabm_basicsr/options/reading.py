"""Checks what an option file says and sets its defaults, before anything is built or run.

What options *name*, as a network and its checkpoint, is checked by ``bridge/named.py``.
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from typing import Any

import torch

from adabm_basicsr.deployment.tiles import check_tiles
from adabm_basicsr.errors import OptionError
from adabm_basicsr.options.checks import check_table, fill_defaults
from adabm_basicsr.options.paths import existing_file
from adabm_basicsr.options.table import CALIBRATION_SETS, Logger, OptionFile, Validation
from adabm_basicsr.quantization.api import make_config
from adabm_basicsr.quantization.checkpoint import read_checkpoint

REQUIRED = ("name", "model_type", "num_gpu", "datasets", "network_g", "path")


def check_options(opt: dict[str, Any], is_train: bool) -> None:
    """Check an option file as far as that is possible without building anything.

    Args:
        opt: What the file says; defaults are filled in.
        is_train: Whether to train.

    Raises:
        AdaBMError: The first mistake.
    """
    _check_sections(opt, is_train)
    if is_train:
        _check_phases(opt["datasets"])
    check_table(opt)
    if is_train:
        _check_training(opt)
    if opt.get("val") is not None:
        _check_validation(opt, is_train)
    _check_device(opt)
    _check_checkpoint_paths(opt["path"])


def _check_sections(opt: dict[str, Any], is_train: bool) -> None:
    """Check that nothing is missing that a run of this kind needs."""
    needed = list(REQUIRED)
    needed += ["train", "logger"] if is_train else ["val"]
    unknown = [key for key in opt if key not in OptionFile.model_fields]
    for key in needed:
        if opt.get(key) is None:
            message = f"{key} is missing from the option file"
            near = difflib.get_close_matches(key, unknown, n=1)
            if near:
                message += f"; {near[0]!r} is no key"
            raise OptionError(message)


def _check_phases(datasets: object) -> None:
    if not isinstance(datasets, dict):
        raise OptionError(f"datasets: {datasets!r} is not a section of keys")
    if datasets.get("train") is None:
        raise OptionError("datasets: train is missing")
    for phase in datasets:
        if phase.split("_")[0] not in ("train", "val"):
            raise OptionError(
                f"datasets: {phase}: valid when training: 'train', 'val', 'val_2', ..."
            )


def _check_training(opt: dict[str, Any]) -> None:
    fill_defaults(Logger, opt["logger"])
    if opt["model_type"] == "AdaBMModel":
        _check_wandb(opt["logger"])
        _check_truth(opt)
    set_recipe_defaults(opt)
    if opt["train"].get("total_iter") is None:
        network = opt["network_g"].get("type")
        dataset = opt["datasets"]["train"].get("type")
        raise OptionError(
            "train: total_iter is missing; a recipe gives it for network_g: type: AdaBMNetwork "
            "with datasets: train: type: CalibrationDataset or ClipCalibrationDataset alone, and "
            "here they are "
            f"{network!r} and {dataset!r}"
        )
    for section, key in (
        ("train", "total_iter"),
        ("logger", "print_freq"),
        ("logger", "save_checkpoint_freq"),
    ):
        value = opt[section].get(key)
        if value is None:
            raise OptionError(f"{section}: {key}: {value!r} is not a whole number of iterations")
        opt[section][key] = int(value)  # 5e3 is a float to YAML
    for key in ("batch_size_per_gpu", "num_worker_per_gpu"):
        if opt["datasets"]["train"].get(key) is None:
            raise OptionError(f"datasets: train: {key}: None is not a whole number")


def _check_wandb(logger: dict[str, Any]) -> None:
    """BasicSR starts wandb late, and asserts without a word on what is missing."""
    wandb = logger["wandb"] or {}
    if wandb.get("project") is None:
        return
    if not logger["use_tb_logger"]:
        raise OptionError(
            "logger: wandb: project: wandb follows TensorBoard; set use_tb_logger: true"
        )
    if not find_spec("wandb"):
        raise OptionError(
            "logger: wandb: project: the package wandb is not installed: pip install wandb"
        )


def _check_truth(opt: dict[str, Any]) -> None:
    """A loss of PSNR is measured on validation sets."""
    if "psnr_drop" not in (opt["network_g"].get("target") or {}):
        return
    if not any(dataset.get("dataroot_gt") for dataset in opt["datasets"].values()):
        raise OptionError(
            "network_g: target: psnr_drop needs ground truth; give a datasets: val with dataroot_gt"
        )


def set_recipe_defaults(opt: dict[str, Any]) -> None:
    """Set what the recipe says of the calibration data and the length of the run.

    What the options themselves say stays.
    """
    network = opt.get("network_g") or {}
    dataset = opt["datasets"].get("train") or {}
    train = opt.get("train")
    if network.get("type") != "AdaBMNetwork" or dataset.get("type") not in CALIBRATION_SETS:
        return
    named = {key: network.get(key) for key in ("recipe", "ingredients")}
    recipe = make_config(named).finetuning
    if dataset.get("fixed_crops") is None:
        dataset["fixed_crops"] = recipe.fixed_crops
    if train is not None and train.get("total_iter") is None:
        train["total_iter"] = recipe.iterations


def _check_validation(opt: dict[str, Any], is_train: bool) -> None:
    val = opt["val"]
    _drop_empty_metrics(val)
    if val.get("tile_overlap") is not None and val.get("tile") is None:
        raise OptionError("val: tile_overlap is given, but no tile")
    fill_defaults(Validation, val)
    if val["tile"] is not None:
        check_tiles("val", val["tile"], val["tile_overlap"])
    if is_train and val["val_freq"] is None:
        # BasicSR validates at the end of a run in any case: once is enough.
        val["val_freq"] = opt["train"]["total_iter"] + 1


def _drop_empty_metrics(val: dict[str, Any]) -> None:
    """Leave out metrics that are empty, as everywhere."""
    metrics = val.get("metrics") or {}
    for name, options in list(metrics.items()):
        if options is None:
            del metrics[name]


def _check_device(opt: dict[str, Any]) -> None:
    available = torch.cuda.device_count()
    if opt["num_gpu"] == "auto":
        opt["num_gpu"] = available
    num_gpu = opt["num_gpu"]
    if num_gpu > available:
        raise OptionError(
            f"num_gpu: {num_gpu}, but there are {available} CUDA devices; set num_gpu: "
            f"{available} or auto"
        )
    for name, dataset in opt["datasets"].items():
        to_gpu = dataset.get("prefetch_mode") == "cuda"
        if to_gpu and not (num_gpu and dataset.get("pin_memory")):
            raise OptionError(
                f"datasets: {name}: prefetch_mode: 'cuda' needs a GPU (num_gpu) and pin_memory: "
                "true"
            )


def _check_checkpoint_paths(paths: dict[str, Any]) -> None:
    for key, value in paths.items():
        if value is None or not ("pretrain_network" in key or "resume_state" in key):
            continue
        paths[key] = existing_file(f"path: {key}: checkpoint", value)
        if "pretrain_network" in key:
            read_checkpoint(paths[key])
