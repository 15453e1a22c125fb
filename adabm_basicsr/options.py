"""Reads BasicSR option files: safely, with mistakes named in one line before anything runs."""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from adabm_basicsr.errors import AdaBMError, check_keys, did_you_mean

TOP_LEVEL = (
    "name", "model_type", "scale", "num_gpu", "manual_seed", "datasets", "network_g", "path", "train", "val", "logger",
    "dist_params", "find_unused_parameters",
)  # fmt: skip
REQUIRED = ("name", "model_type", "num_gpu", "datasets", "network_g", "path")
VAL_KEYS = ("val_freq", "save_img", "suffix", "metrics", "pbar", "tile", "tile_overlap")
LOGGER_KEYS = ("print_freq", "save_checkpoint_freq", "use_tb_logger", "wandb")


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The flags of BasicSR's ``train.py`` and ``test.py``."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("-opt", type=str, required=True, help="option file (YAML)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument("--auto_resume", action="store_true", help="continue from the newest training state")
    parser.add_argument("--debug", action="store_true", help="log, validate and save every few iterations")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options")
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
    _set_up_processes(opt, args.launcher)
    opt["auto_resume"], opt["is_train"] = args.auto_resume, is_train
    if args.debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
    _set_paths(opt, Path(root_path), is_train)
    return opt


def load_yaml(path: str | Path) -> dict:
    """Read a YAML mapping without constructing anything but plain values.

    Raises:
        AdaBMError: The file is missing, or isn't a YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise AdaBMError(f"option file {path} does not exist")
    try:
        opt = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise AdaBMError(f"option file {path}{where} is not valid YAML: {problem}") from error
    if not isinstance(opt, dict):
        raise AdaBMError(f"option file {path} holds no keys; expected name, model_type, network_g, ...")
    return opt


def apply_override(opt: dict, override: str) -> None:
    """Set one option as ``--force_yml`` gives it: ``train:total_iter=100``, the value read as YAML.

    Raises:
        AdaBMError: The form is wrong, or a section doesn't exist.
    """
    keys, equals, value = override.partition("=")
    *sections, last = keys.strip().split(":")
    if not equals or not last:
        raise AdaBMError(f"--force_yml: {override!r} is not of the form KEY:KEY=VALUE")
    for section in sections:
        if not isinstance(opt.get(section), dict):
            raise AdaBMError(
                f"--force_yml: {override!r}: there is no section {section!r}; {did_you_mean(section, opt)}"
            )
        opt = opt[section]
    try:
        opt[last] = None if value.strip().lower() == "none" else yaml.safe_load(value)  # none: as BasicSR reads it
    except yaml.YAMLError as error:
        raise AdaBMError(f"--force_yml: {override!r}: the value is not valid YAML") from error


def check_options(opt: dict, is_train: bool) -> None:
    """Raise `AdaBMError` for the first mistake that can be seen without building anything."""
    for key in (*REQUIRED, "train", "logger") if is_train else (*REQUIRED, "val"):
        if key not in opt:
            raise AdaBMError(f"{key} is missing from the option file")
    if opt["model_type"] == "AdaBMModel":
        check_keys("option file", opt, TOP_LEVEL)
    for key in ("datasets", "network_g", "path", "train", "val", "logger"):
        if key in opt and not isinstance(opt[key], dict):
            raise AdaBMError(f"{key}: {opt[key]!r} is not a section of keys")
    if "type" not in opt["network_g"]:
        raise AdaBMError("network_g: type is missing")
    if is_train:
        _check_training(opt)
    _set_defaults(opt, is_train)
    _check_validation(opt)
    _check_device(opt)
    _check_checkpoint_paths(opt["path"])
    _check_datasets(opt)
    _check_registered(opt)


def _set_defaults(opt: dict, is_train: bool) -> None:
    """What BasicSR expects in every file, though there is a natural choice."""
    if opt.get("val") is not None:
        opt["val"].setdefault("save_img", False)
        opt["val"].setdefault("suffix", None)
        if is_train:
            opt["val"].setdefault("val_freq", max(opt["train"]["total_iter"], 1))
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

        val["tile_overlap"] = DEFAULT_OVERLAP if val.get("tile_overlap") is None else val["tile_overlap"]
        check_tiles("val", val["tile"], val["tile_overlap"])


def set_recipe_defaults(opt: dict) -> None:
    """What the recipe says about the calibration data and the length of the run, where the options don't."""
    from adabm_basicsr.quantization.api import make_config

    network, dataset, train = opt.get("network_g") or {}, opt["datasets"].get("train") or {}, opt.get("train")
    if network.get("type") != "AdaBMNetwork" or dataset.get("type") != "CalibrationDataset":
        return
    recipe = make_config({key: network.get(key) for key in ("recipe", "ingredients")}).preset
    if dataset.get("fixed_crops") is None:
        dataset["fixed_crops"] = recipe.fixed_crops
    if train is not None and train.get("total_iter") is None:
        train["total_iter"] = recipe.iterations


def _check_registered(opt: dict) -> None:
    """Every type that the options name exists, and the network can be built; before BasicSR moves earlier results."""
    import basicsr  # noqa: F401
    from basicsr.archs import build_network
    from basicsr.utils import registry

    from adabm_basicsr.archs.adabm_arch import import_modules

    import_modules(opt["network_g"].get("custom_imports") or ())
    if opt["network_g"]["type"] != "AdaBMNetwork":
        opt["network_g"].pop("custom_imports", None)  # a plain architecture doesn't take the key
    named = [("model_type", opt["model_type"], registry.MODEL_REGISTRY)]
    named += [("network_g: type", opt["network_g"]["type"], registry.ARCH_REGISTRY)]
    for name, dataset in opt["datasets"].items():
        named.append((f"datasets: {name}: type", dataset["type"], registry.DATASET_REGISTRY))
    for name, metric in ((opt.get("val") or {}).get("metrics") or {}).items():
        kind = metric.get("type") if isinstance(metric, dict) else None
        named.append((f"val: metrics: {name}: type", kind, registry.METRIC_REGISTRY))
    for key, value, choices in named:
        if value not in choices and f"{value}_basicsr" not in choices:
            raise AdaBMError(f"{key}: {value!r} is not registered; {did_you_mean(value, choices.keys())}")
    if opt["model_type"] == "AdaBMModel":
        build_network(opt["network_g"])


def _check_training(opt: dict) -> None:
    if "train" not in opt["datasets"]:
        raise AdaBMError("datasets: train is missing")
    for phase in opt["datasets"]:
        if phase.split("_")[0] not in ("train", "val"):
            raise AdaBMError(f"datasets: {phase}: valid when training: 'train', 'val', 'val_2', ...")
    if opt["model_type"] == "AdaBMModel":
        check_keys("logger", opt["logger"], LOGGER_KEYS)
        if isinstance(opt["datasets"]["train"], dict):
            set_recipe_defaults(opt)
    for section, key in (("train", "total_iter"), ("logger", "print_freq"), ("logger", "save_checkpoint_freq")):
        value = opt[section].get(key)
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if section == "train" else 1):
            raise AdaBMError(f"{section}: {key}: {value!r} is not a whole number of iterations")
        opt[section][key] = value
    for key in ("batch_size_per_gpu", "num_worker_per_gpu"):
        value = opt["datasets"]["train"].get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < (1 if key.startswith("batch") else 0):
            raise AdaBMError(f"datasets: train: {key}: {value!r} is not a whole number")


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


def _check_checkpoint_paths(paths: dict) -> None:
    for key, value in paths.items():
        if value is not None and ("pretrain_network" in key or "resume_state" in key):
            paths[key] = str(Path(value).expanduser())
            if not Path(paths[key]).is_file():
                raise AdaBMError(f"path: {key}: checkpoint {paths[key]} does not exist")


def _check_datasets(opt: dict) -> None:
    for name, dataset in opt["datasets"].items():
        where = f"datasets: {name}"
        if not isinstance(dataset, dict):
            raise AdaBMError(f"{where}: {dataset!r} is not a section of keys")
        dataset["io_backend"] = dataset.get("io_backend") or {"type": "disk"}
        needed = ["name", "type"]
        needed += {"PairedImageDataset": ["dataroot_lq", "dataroot_gt"], "SingleImageDataset": ["dataroot_lq"]}.get(
            dataset.get("type"), []
        )
        for key in needed:
            if dataset.get(key) is None:
                raise AdaBMError(f"{where}: {key} is missing")
        _check_folders(where, dataset, decode=name != "train", scale=opt.get("scale", 1))


def _check_folders(where: str, dataset: dict, decode: bool, scale: int) -> None:
    sizes = {}
    for key in ("dataroot_lq", "dataroot_gt"):
        if dataset.get(key) is not None:
            dataset[key] = str(Path(dataset[key]).expanduser())
            sizes[key] = _check_images(f"{where}: {key}", dataset, Path(dataset[key]), decode)
    if dataset["type"] != "PairedImageDataset" or not all(sizes.values()):
        return
    small, large = sizes["dataroot_lq"], sizes["dataroot_gt"]
    if len(small) != len(large):
        raise AdaBMError(f"{where}: dataroot_lq holds {len(small)} images, dataroot_gt {len(large)}")
    for (path, (height, width)), (gt_path, gt_size) in zip(small.items(), large.items()):
        if gt_size[0] < scale * height or gt_size[1] < scale * width:
            raise AdaBMError(f"{where}: {gt_path} is less than {scale} (scale) times as large as {path}")


def _check_images(key: str, dataset: dict, folder: Path, decode: bool) -> dict[Path, tuple[int, int]]:
    """Height and width of each image in a folder that is decoded as a check; nothing of LMDBs and listed images."""
    from adabm_basicsr.data.images import list_images, read_image

    if dataset["io_backend"].get("type", "disk") != "disk" or dataset.get("meta_info_file"):
        if not folder.is_dir():
            raise AdaBMError(f"{key}: folder {folder} does not exist")
        return {}
    paths = list_images(folder, key)
    if dataset["type"] != "CalibrationDataset":
        # BasicSR reads every file of the folder, and fails deep inside at one that isn't an image.
        known = set(paths)
        strays = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p not in known)
        if strays:
            raise AdaBMError(f"{key}: {strays[0]} is not an image")
    if not decode:
        return {}

    def size(path: Path) -> tuple[int, int]:
        return read_image(path).shape[:2]

    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(size, paths)))


def _set_up_processes(opt: dict, launcher: str) -> None:
    from adabm_basicsr.compat import init_dist, share_seed
    from adabm_basicsr.quantization.distributed import rank_and_size

    opt["dist"] = launcher != "none"
    if opt["dist"]:
        params = opt.get("dist_params") or {}
        init_dist(launcher, bool(opt["num_gpu"]), **params if launcher == "slurm" else {})
    opt["rank"], opt["world_size"] = rank_and_size()
    if opt.get("manual_seed") is None:
        opt["manual_seed"] = random.randint(1, 10000)
    share_seed(opt)


def _set_paths(opt: dict, root: Path, is_train: bool) -> None:
    paths = opt["path"]
    base = root / ("experiments" if is_train else "results") / opt["name"]
    paths["experiments_root" if is_train else "results_root"] = str(base)
    paths["log"], paths["visualization"] = str(base), str(base / "visualization")
    if is_train:
        paths["models"], paths["training_states"] = str(base / "models"), str(base / "training_states")
        if "debug" in opt["name"]:
            opt.get("val", {})["val_freq"] = 8
            opt["logger"]["print_freq"], opt["logger"]["save_checkpoint_freq"] = 1, 8
