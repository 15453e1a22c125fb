"""Reads BasicSR option files: safely, with mistakes named in one line before anything runs."""

from __future__ import annotations

import argparse
import difflib
import os
import random
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from adabm_basicsr.errors import AdaBMError, check_keys, did_you_mean, not_found
from adabm_basicsr.options.kinds import check_kinds
from adabm_basicsr.options.yaml_files import apply_override, load_yaml

if TYPE_CHECKING:
    from adabm_basicsr.quantization.network import QuantizedNetwork

TOP_LEVEL = (
    "name", "model_type", "scale", "num_gpu", "manual_seed", "datasets", "network_g", "path", "train", "val", "logger",
    "dist_params", "find_unused_parameters",
)  # fmt: skip
REQUIRED = ("name", "model_type", "num_gpu", "datasets", "network_g", "path")
VAL_KEYS = ("val_freq", "save_img", "suffix", "metrics", "pbar", "tile", "tile_overlap")
LOGGER_KEYS = ("print_freq", "save_checkpoint_freq", "use_tb_logger", "wandb")
TRIED = 24  # pixels of the image that the network's scale is tried on
# BasicSR makes a folder of every other value in this section.
PATH_KEYS = (
    "pretrain_network_g",
    "param_key_g",
    "strict_load_g",
    "resume_state",
    "ignore_resume_networks",
)


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The flags of BasicSR's ``train.py`` and ``test.py``."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("-opt", type=str, required=True, help="option file (YAML)")
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher"
    )
    parser.add_argument(
        "--auto_resume", action="store_true", help="continue from the newest training state"
    )
    parser.add_argument(
        "--debug", action="store_true", help="log, validate and save every few iterations"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options"
    )
    return parser


def parse_options(args: argparse.Namespace, root_path: str | Path, is_train: bool) -> dict:
    """What BasicSR's ``parse_options`` returns, from a file that is checked first.

    Args:
        args: Parsed flags, see `make_parser`.
        root_path: Folder below which ``experiments`` or ``results`` are written.
        is_train: Whether to train.

    Raises:
        AdaBMError: The file is missing, no YAML, or holds a mistake that can be seen before the run.
    """
    opt = load_yaml(args.opt)
    for override in args.force_yml:
        apply_override(opt, override)
    check_options(opt, is_train)
    _join_processes(opt, args.launcher)
    _check_what_is_named(opt, is_train)
    _seed(opt)
    opt["auto_resume"], opt["is_train"] = args.auto_resume, is_train
    if args.debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
    _set_paths(opt, Path(root_path), is_train)
    return opt


def check_options(opt: dict, is_train: bool) -> None:
    """Raise `AdaBMError` for the first mistake that can be seen without building anything."""
    for key in (*REQUIRED, "train", "logger") if is_train else (*REQUIRED, "val"):
        if opt.get(key) is None:
            near = difflib.get_close_matches(
                key, [given for given in opt if given not in TOP_LEVEL], n=1
            )
            raise AdaBMError(
                f"{key} is missing from the option file{f'; {near[0]!r} is no key' if near else ''}"
            )
    if opt["model_type"] == "AdaBMModel":
        check_keys("option file", opt, TOP_LEVEL)
    check_kinds(opt)
    if opt["model_type"] == "AdaBMModel":
        check_keys("path", opt["path"], PATH_KEYS)
    if opt["network_g"].get("type") is None:
        raise AdaBMError("network_g: type is missing")
    if is_train:
        _check_training(opt)
    _set_defaults(opt, is_train)
    _check_validation(opt)
    _check_device(opt)
    _check_checkpoint_paths(opt["path"])


def _set_defaults(opt: dict, is_train: bool) -> None:
    """What BasicSR expects in every file, though there is a natural choice."""
    if opt.get("val") is not None:
        opt["val"].setdefault("suffix", None)
        # BasicSR validates at the end of a run in any case: once is enough.
        defaults = {
            "save_img": False,
            "val_freq": opt["train"]["total_iter"] + 1 if is_train else None,
        }
        opt["val"].update(
            {key: value for key, value in defaults.items() if opt["val"].get(key) is None}
        )
    if is_train:
        opt["logger"].setdefault("use_tb_logger", False)


def _check_validation(opt: dict) -> None:
    val = opt.get("val") or {}
    if opt["model_type"] == "AdaBMModel":
        check_keys("val", val, VAL_KEYS)
    if val.get("tile_overlap") is not None and val.get("tile") is None:
        raise AdaBMError("val: tile_overlap is given, but no tile")
    if val.get("tile") is not None:
        from adabm_basicsr.deployment.tiles import DEFAULT_OVERLAP, check_tiles

        val["tile_overlap"] = (
            DEFAULT_OVERLAP if val.get("tile_overlap") is None else val["tile_overlap"]
        )
        check_tiles("val", val["tile"], val["tile_overlap"])


def set_recipe_defaults(opt: dict) -> None:
    """What the recipe says about the calibration data and the length of the run, where the options don't."""
    from adabm_basicsr.quantization.api import make_config

    network, dataset, train = (
        opt.get("network_g") or {},
        opt["datasets"].get("train") or {},
        opt.get("train"),
    )
    if network.get("type") != "AdaBMNetwork" or dataset.get("type") != "CalibrationDataset":
        return
    recipe = make_config({key: network.get(key) for key in ("recipe", "ingredients")}).finetuning
    if dataset.get("fixed_crops") is None:
        dataset["fixed_crops"] = recipe.fixed_crops
    if train is not None and train.get("total_iter") is None:
        train["total_iter"] = recipe.iterations


def _check_what_is_named(opt: dict, is_train: bool) -> None:
    """Images, types, network, checkpoint and metrics; before BasicSR moves earlier results."""
    from adabm_basicsr.options.datasets import check_datasets, check_metrics

    sizes = check_datasets(opt)
    _check_registered(opt)
    if is_train and opt["network_g"]["type"] == "AdaBMNetwork":
        _check_model(opt["model_type"])
    check_metrics((opt.get("val") or {}).get("metrics") or {}, sizes)
    if opt["model_type"] == "AdaBMModel":
        _check_network(opt, is_train)


def _check_registered(opt: dict) -> None:
    import basicsr  # noqa: F401
    from basicsr.utils import registry

    from adabm_basicsr.archs.adabm_arch import import_modules

    import_modules(opt["network_g"].get("custom_imports") or ())
    if opt["network_g"]["type"] != "AdaBMNetwork":
        opt["network_g"].pop("custom_imports", None)  # a plain architecture doesn't take the key
    named = [("model_type", opt["model_type"], registry.MODEL_REGISTRY)]
    named += [("network_g: type", opt["network_g"]["type"], registry.ARCH_REGISTRY)]
    for name, dataset in opt["datasets"].items():
        named.append((f"datasets: {name}: type", dataset["type"], registry.DATASET_REGISTRY))
    metrics = (opt.get("val") or {}).get("metrics") or {}
    kinds = {
        name: metric.get("type") if isinstance(metric, dict) else None
        for name, metric in metrics.items()
    }
    named += [
        (f"val: metrics: {name}: type", kind, registry.METRIC_REGISTRY)
        for name, kind in kinds.items()
    ]
    for key, value, choices in named:
        if value not in choices and f"{value}_basicsr" not in choices:
            raise AdaBMError(
                f"{key}: {value!r} is not registered; {did_you_mean(value, choices.keys())}"
            )
    for name, kind in kinds.items():
        if kind == "calculate_lpips" and not find_spec("lpips"):
            raise AdaBMError(
                f"val: metrics: {name}: {kind} needs the package lpips: pip install lpips"
            )


def _check_model(model_type: str) -> None:
    """BasicSR's own models test a quantized network, but don't know how to make one."""
    from basicsr.utils.registry import MODEL_REGISTRY

    from adabm_basicsr.models.adabm_model import AdaBMModel

    if not issubclass(MODEL_REGISTRY.get(model_type), AdaBMModel):
        raise AdaBMError(
            f"model_type: {model_type!r} doesn't quantize; AdaBMModel trains AdaBMNetwork"
        )


def _check_network(opt: dict, is_train: bool) -> None:
    from basicsr.archs import build_network

    from adabm_basicsr.archs.adabm_arch import build_base
    from adabm_basicsr.models.setup import set_up_training
    from adabm_basicsr.quantization.checkpoint import load_checkpoint

    quantized, paths = opt["network_g"]["type"] == "AdaBMNetwork", opt["path"]
    net = (
        build_network(opt["network_g"]) if quantized else build_base(opt["network_g"], "network_g")
    )
    if paths.get("pretrain_network_g") and not paths.get("resume_state"):
        load_checkpoint(net, paths["pretrain_network_g"], paths.get("param_key_g"))
    if is_train:
        set_up_training(opt, net)
    elif quantized:
        net.check_calibrated()
    if quantized and opt.get("scale") is not None:
        _check_scale(opt["scale"], net)


def _check_scale(scale: int, net: QuantizedNetwork) -> None:
    """BasicSR cuts the ground truth to ``scale`` times the input, and reports name it."""
    import torch

    with net.full_precision():
        made = net(torch.zeros(1, net.in_channels, TRIED, TRIED)).shape[2] / TRIED
    if made != scale:
        raise AdaBMError(
            f"scale: {scale}: the network makes images {made:g} times as large; set scale: {made:g}"
        )


def _check_training(opt: dict) -> None:
    if opt["datasets"].get("train") is None:
        raise AdaBMError("datasets: train is missing")
    for phase in opt["datasets"]:
        if phase.split("_")[0] not in ("train", "val"):
            raise AdaBMError(
                f"datasets: {phase}: valid when training: 'train', 'val', 'val_2', ..."
            )
    if opt["model_type"] == "AdaBMModel":
        check_keys("logger", opt["logger"], LOGGER_KEYS)
        _check_wandb(opt["logger"])
    set_recipe_defaults(opt)
    for section, key in (
        ("train", "total_iter"),
        ("logger", "print_freq"),
        ("logger", "save_checkpoint_freq"),
    ):
        value = opt[section].get(key)
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < (0 if section == "train" else 1)
        ):
            raise AdaBMError(f"{section}: {key}: {value!r} is not a whole number of iterations")
        opt[section][key] = value
    for key in ("batch_size_per_gpu", "num_worker_per_gpu"):
        value = opt["datasets"]["train"].get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < (1 if key.startswith("batch") else 0)
        ):
            raise AdaBMError(f"datasets: train: {key}: {value!r} is not a whole number")


def _check_wandb(logger: dict) -> None:
    """BasicSR starts wandb late, and asserts without a word on what is missing."""
    if (logger.get("wandb") or {}).get("project") is None:
        return
    if not logger.get("use_tb_logger"):
        raise AdaBMError(
            "logger: wandb: project: wandb follows TensorBoard; set use_tb_logger: true"
        )
    if not find_spec("wandb"):
        raise AdaBMError(
            "logger: wandb: project: the package wandb is not installed: pip install wandb"
        )


def _check_device(opt: dict) -> None:
    import torch

    available, num_gpu = torch.cuda.device_count(), opt["num_gpu"]
    if num_gpu == "auto":
        opt["num_gpu"] = num_gpu = available
    if isinstance(num_gpu, bool) or not isinstance(num_gpu, int) or num_gpu < 0:
        raise AdaBMError(f"num_gpu: {num_gpu!r} is not a number of GPUs; valid: auto, 0, 1, ...")
    if num_gpu > available:
        raise AdaBMError(
            f"num_gpu: {num_gpu}, but there are {available} CUDA devices; set num_gpu: {available} or auto"
        )
    for name, dataset in opt["datasets"].items():
        if (dataset or {}).get("prefetch_mode") == "cuda" and not (
            num_gpu and dataset.get("pin_memory")
        ):
            raise AdaBMError(
                f"datasets: {name}: prefetch_mode: 'cuda' needs a GPU (num_gpu) and pin_memory: true"
            )


def _check_checkpoint_paths(paths: dict) -> None:
    from adabm_basicsr.quantization.checkpoint import read_checkpoint

    for key, value in paths.items():
        if value is not None and ("pretrain_network" in key or "resume_state" in key):
            paths[key] = os.path.expanduser(value)
            if not os.path.isfile(paths[key]):
                raise not_found(f"path: {key}: checkpoint", paths[key])
            if "pretrain_network" in key:
                read_checkpoint(paths[key])


def _join_processes(opt: dict, launcher: str) -> None:
    from adabm_basicsr.bridge.patches import init_dist
    from adabm_basicsr.quantization.distributed import rank_and_size

    opt["dist"] = launcher != "none"
    if opt["dist"]:
        params = opt.get("dist_params") or {}
        init_dist(launcher, bool(opt["num_gpu"]), **params if launcher == "slurm" else {})
    opt["rank"], opt["world_size"] = rank_and_size()


def _seed(opt: dict) -> None:
    from adabm_basicsr.bridge.patches import share_seed

    if opt.get("manual_seed") is None:
        opt["manual_seed"] = random.randint(1, 10000)
    share_seed(opt)


def _set_paths(opt: dict, root: Path, is_train: bool) -> None:
    paths = opt["path"]
    base = root / ("experiments" if is_train else "results") / opt["name"]
    paths["experiments_root" if is_train else "results_root"] = str(base)
    paths["log"], paths["visualization"] = str(base), str(base / "visualization")
    if is_train:
        paths["models"], paths["training_states"] = (
            str(base / "models"),
            str(base / "training_states"),
        )
        if "debug" in opt["name"]:
            if opt.get("val"):
                opt["val"]["val_freq"] = 8
            opt["logger"]["print_freq"], opt["logger"]["save_checkpoint_freq"] = 1, 8
